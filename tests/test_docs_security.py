"""docs/security.md says of every route who may use it, and of the audit what it has words for."""

from __future__ import annotations

import re
from pathlib import Path

from taskpool.access import api_key
from taskpool.access.api_key import OPTIONS, RIGHTS, Effect
from taskpool.access.audit import What
from tests.test_api_access import guards

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """The second cells of the table under this line, by the first."""
    lines = TEXT.partition(heading + "\n")[2].splitlines()[1:]
    cells = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return {first.strip(): second for first, second, *_ in cells}


def routes(cell: str) -> set[tuple[str, str]]:
    """Path and method of each route in a cell."""
    return {(path, method) for method, path in re.findall(r"`([A-Z]+) (/[^`]*)`", cell)}


def test_the_table_of_scopes_says_what_each_route_asks_of_its_caller() -> None:
    served = {where: access for where, access in guards().items() if where[1] != "HEAD"}
    documented = {row: routes(cell) for row, cell in rows("| scope | what it opens |").items()}

    assert documented.pop("none, and no key") == {where for where, access in served.items() if access.public}
    assert documented.pop("any key") == {where for where, a in served.items() if a.scope is None and not a.public}
    assert documented.pop("not for a key of a project") == {where for where, access in served.items() if access.whole}
    assert documented.pop("also with a ticket") == {where for where, access in served.items() if access.ticket}
    assert documented == {
        f"`{scope}`": {where for where, access in served.items() if access.scope is scope} for scope in api_key.Scope
    }


def test_the_tables_of_effects_say_what_the_code_asks_for() -> None:
    of_effects = {
        row.partition("`:")[0].strip("`"): cell for row, cell in rows("| effect | scope | which tasks |").items()
    }
    of_options = rows("| operation or option | effects |")

    assert {effect: cell.strip(" `") for effect, cell in of_effects.items()} == {
        effect: right.scope for effect, right in RIGHTS.items()
    }
    for option, value, effect in OPTIONS:
        row = of_options[f"`{option}`" if value is None else f"`{option}: {value}`"]
        assert re.findall(r"^ `(\w+)`", row) == [effect], option


def test_every_route_of_tasks_has_a_row_of_its_effects() -> None:
    of_operations = rows("| operation or option | effects |")
    documented = {
        (path, method): effect
        for row, cell in of_operations.items()
        for path, method in routes(row)
        for effect in re.findall(r"^ `(\w+)`", cell)
    }

    scopes = {
        where: RIGHTS[Effect(effect)].scope for where, effect in documented.items() if where[0].startswith("/tasks")
    }
    assert scopes == {where: guards()[where].scope for where in scopes}
    changing = {where for where in guards() if where[0].startswith("/tasks") and where[1] not in ("GET", "HEAD")}
    assert changing <= scopes.keys()


def test_the_table_of_the_audit_has_every_word_that_the_code_has() -> None:
    files = [path for folder in ("taskpool", "api") for path in (ROOT / folder).rglob("*.py")]
    code = "".join(path.read_text() for path in files if path.name != "audit.py")  # it lists the words
    words = set(re.findall(r'"([a-z]+\.[a-z_]+)"', code)) & set(What)
    documented = set(re.findall(r"`([a-z]+\.[a-z_]+)`", " ".join(rows("| `what` | |"))))

    assert "task.submitted" in words
    assert documented == words == set(What)


def test_each_risk_of_the_owasp_list_names_tests_that_there_are() -> None:
    risks = rows("| risk | what Taskpool does | tests |")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT)

    assert [risk.split()[0] for risk in risks] == [f"API{number}" for number in range(1, 11)]
    assert len(named) >= len(risks)
    for file, function in named:
        assert f"def {function}" in (ROOT / "tests" / file).read_text(), (file, function)
