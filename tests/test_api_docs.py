"""docs/api.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route, WebSocketRoute

from api.app import create_app
from api.routes.metrics import HISTOGRAMS, Scrape
from api.routing import Resource
from taskpool.errors import PROBLEMS
from taskpool.redis.keys import OUTCOMES
from taskpool.settings import Settings
from taskpool.types import TaskSpec
from taskpool.validation import declared, default_in_words

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "api.md").read_text()


def table(heading: str, text: str = TEXT) -> list[list[str]]:
    """The cells of the rows of the table under this line, without backticks."""
    lines = text.partition(heading + "\n")[2].splitlines()[1:]
    rows = lines[: next(at for at, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_paths_is_that_of_the_application() -> None:
    app = create_app(Settings(redis_url="redis://nowhere"))
    served: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            served[route.path] = set()
            continue
        assert isinstance(route, Route)
        assert isinstance(route.endpoint, Resource)
        served[route.path] = set(route.endpoint.guarded) - {"HEAD"}

    assert {path: set(methods.split()) for path, methods, _ in table("| path | methods | |")} == served


def test_the_table_of_fields_is_that_of_a_submission() -> None:
    rows = {name: (_without_links(text), default) for name, text, default in table("| field | | default |")}

    assert rows == {
        field.name: (field.about.description.replace("`", ""), default_in_words(field).replace("`", ""))
        for field in declared(TaskSpec)
    }


def _without_links(text: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)


def test_the_table_of_problems_is_that_of_the_code() -> None:
    rows = table("| type (after `urn:taskpool:problem:`) | status | title | meaning |")
    declared = [(kind.name, kind.status, kind.title, kind.meaning.replace("`", "")) for kind in PROBLEMS.values()]

    assert [(kind, int(status), title, meaning) for kind, status, title, meaning in rows] == declared


def test_the_table_of_metrics_is_that_of_a_scrape() -> None:
    families = [*(family.name for family in Scrape({}).collect()), *(name for name, *_ in HISTOGRAMS)]

    text = (DOCS / "monitoring.md").read_text()

    assert [re.sub("_total$", "", name) for name, _, _ in table("| metric | labels | |", text)] == families
    assert {word for row in table("| outcome | |", text) for word in row[0].split(", ")} == set(OUTCOMES)
