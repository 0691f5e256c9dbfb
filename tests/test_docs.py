"""The documentation says what the code says, where a program can compare them."""

import re
from pathlib import Path

from taskpool import keys
from taskpool.types import TRANSITIONS

DOCS = Path(__file__).parent.parent / "docs"
INTERNALS = (DOCS / "internals.md").read_text("utf-8")


def test_the_state_diagram_shows_the_whitelist_of_transitions() -> None:
    arrows = re.findall(r"^  (\w+) --> (\w+)$", INTERNALS, re.MULTILINE)

    assert sorted(arrows) == sorted((old.value, new.value) for old, news in TRANSITIONS.items() for new in news)


def test_the_table_of_keys_names_every_key() -> None:
    constants = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}

    missing = {name: key for name, key in constants.items() if f"`{key}" not in INTERNALS}

    assert missing == {}
