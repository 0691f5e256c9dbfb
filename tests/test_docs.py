"""The documentation says what the code says, where a program can compare them."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from taskpool.access.api_key import ALL_SCOPES
from taskpool.cli.__main__ import main
from taskpool.redis import keys
from taskpool.types import RETRYABLE, TERMINAL, TRANSITIONS

DOCS = Path(__file__).parent.parent / "docs"
INTERNALS = (DOCS / "internals.md").read_text("utf-8")


def test_the_state_diagram_shows_the_whitelist_of_transitions() -> None:
    arrows = re.findall(r"^  (\w+) --> (\w+)$", INTERNALS, re.MULTILINE)

    assert sorted(arrows) == sorted((old.value, new.value) for old, news in TRANSITIONS.items() for new in news)


def test_the_state_diagram_shows_how_a_task_begins_and_ends() -> None:
    begins = re.findall(r"^  \[\*\] --> (\w+)$", INTERNALS, re.MULTILINE)
    ends = re.findall(r"^  (\w+) --> \[\*\]$", INTERNALS, re.MULTILINE)
    (retried,) = re.findall(r"starts a new life of a ((?:\w+, )*\w+ or \w+) task", INTERNALS)

    assert set(begins) == {"queued", "scheduled", "waiting", "waiting_confirmation", "canceled"}
    assert set(ends) == {status.value for status in TERMINAL}
    assert set(re.findall(r"\w+", retried)) - {"or"} == {status.value for status in RETRYABLE}


def test_the_table_of_keys_names_every_key() -> None:
    words = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    constants = {name: value for name, value in words.items() if value.startswith(("rq:", "taskpool:"))}

    missing = {name: key for name, key in constants.items() if f"`{key}" not in INTERNALS}

    assert missing == {}


def anchors(text: str) -> set[str]:
    """The headings of a document, as links name them."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {title.replace(" ", "-") for title in titles}


def test_every_link_between_the_documents_leads_somewhere() -> None:
    wrong = []
    root = DOCS.parent
    for document in [root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md"), root / "deploy/proxy/README.md"]:
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", document.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            target = (document.parent / path) if path else document
            if not target.is_file() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
                wrong.append(f"{document.name}: {link}")

    assert wrong == []


def test_no_page_has_two_headings_of_the_same_name() -> None:
    doubled = []
    for page in DOCS.glob("*.md"):
        titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
        doubled += [(page.name, title) for title, count in Counter(titles).items() if count > 1]

    assert doubled == []


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield above + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def test_the_page_of_the_client_names_the_commands_without_a_server() -> None:
    (sentence,) = re.findall(r"All commands except (.+) accept `--server`", (DOCS / "client.md").read_text("utf-8"))
    flags = {
        name: {flag for parameter in command.params for flag in parameter.opts}
        for name, command in commands(main)
        if not isinstance(command, click.Group)
    }

    assert set(re.findall(r"`([\w-]+)`", sentence)) == {name for name, has in flags.items() if "--server" not in has}


def test_the_web_page_names_commands_flags_and_scopes_that_exist() -> None:
    known = dict(commands(main))
    scripts = [file for file in (DOCS.parent / "dashboard").rglob("*.js") if "vendor" not in file.parts]
    shown = [
        text
        for file in scripts
        for text in re.findall(r"[`>: ]taskpool (?!import )([a-z][^`<]+)", file.read_text("utf-8"))
    ]

    for text in shown:
        words = text.split()
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in known), None)
        assert name is not None, text
        has = {flag for parameter in known[name].params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", text)) <= has, text
        assert set(re.findall(r"--scope (\S+)", text)) <= set(ALL_SCOPES), text
    assert len(shown) > 5


def test_the_index_links_to_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")

    missing = [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"]({page.name})" not in index]

    assert missing == []


def test_the_tree_is_the_real_one() -> None:
    root = DOCS.parent
    (block,) = re.findall(r"^```text\n(taskpool/ .*?)^```", INTERNALS, re.MULTILINE | re.DOTALL)
    shown: dict[str, set[str]] = {}
    folder = ""
    for line in block.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            shown[folder].add(name)
        else:
            folder = name
            shown[folder] = set()

    real = {
        f"{folder}/": {
            path.name + ("/" if path.is_dir() else "")
            for path in (root / folder).iterdir()
            if not path.name.startswith("__") and (path.is_dir() or path.suffix in (".py", ".js"))
        }
        for folder in ("taskpool", "workers", "dashboard", "api")
    }
    assert shown == real
