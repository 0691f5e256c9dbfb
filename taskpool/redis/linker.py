"""Puts together the text of a Lua script: the shared functions that it uses, constants, and the script itself.

Redis compiles a script once, but makes its functions anew in each call. So a script gets just those functions of
lua/shared/ that it names, and those that they name in turn. Two notations make them later or not at all:

- functions that a script calls as `rarely().name(...)` are made by the first such call;
- what only the text below a line `-- <more functions>` uses is made at that line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from taskpool.redis import keys

FOLDER: Final = files(__package__) / "lua"
LATER: Final = "-- <more functions>\n"

_DEFINITION: Final = re.compile(r"^((?:--.*\n)*)local (?:function )?(\w+)", re.MULTILINE)
_NAME: Final = re.compile(r"(?<![\w.])[a-z]\w*")
_RARE: Final = re.compile(r"\brarely\(\)\.(\w+)")
_WORDS: Final = re.compile(r"--.*|'[^'\n]*'")
"""Comments and texts."""
_CONSTANT: Final = re.compile(rf"\b({'|'.join(keys.SCRIPT_CONSTANTS)})\.([a-z_]+)")


class Definition(NamedTuple):
    """A function of lua/shared/, or a variable of one."""

    text: str
    needs: tuple[str, ...]
    """The others that it names itself."""


def linked(name: str) -> str:
    """The whole text of the script lua/{name}.lua."""
    script = (FOLDER / f"{name}.lua").read_text("utf-8")
    top, _, bottom = script.partition(LATER)
    own = {each[2] for each in _DEFINITION.finditer(script)}
    made = _with_needs(each for each in _names(top) if each not in own)
    rare = [each for each in _with_needs(_RARE.findall(script)) if each not in made]
    below = [each for each in _with_needs(_names(bottom)) if each not in (own | set(made))]
    parts = [*_texts(made), _made_on_demand(rare) if rare else "", top, *_texts(below), bottom]
    return _CONSTANT.sub(_literal, "\n".join(filter(None, parts)))


@cache
def definitions() -> Mapping[str, Definition]:
    """All of lua/shared/, by name."""
    texts: dict[str, str] = {}
    for file in (FOLDER / "shared").iterdir():
        if file.name.endswith(".lua"):
            texts |= dict(_parts(file.read_text("utf-8")))
    return {
        name: Definition(text, tuple(other for other in _names(text) if other in texts and other != name))
        for name, text in texts.items()
    }


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The name and the text of each definition in a file, each with the comment above it."""
    found = list(_DEFINITION.finditer(text))
    ends = [each.start() for each in found[1:]] + [len(text)]
    for each, end in zip(found, ends, strict=True):
        yield each[2], text[each.start() : end].rstrip() + "\n"


def _names(text: str) -> list[str]:
    """The names in a text that may be those of shared functions, each once."""
    return list(dict.fromkeys(_NAME.findall(_WORDS.sub("", text))))


def _with_needs(names: Iterable[str]) -> list[str]:
    """These shared functions and all that they need, each behind those that it needs."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        if name in definitions() and name not in found:
            for other in definitions()[name].needs:
                add(other)
            found[name] = None

    for name in names:
        add(name)
    return list(found)


def _texts(names: Iterable[str]) -> list[str]:
    return [definitions()[name].text for name in names]


def _made_on_demand(names: list[str]) -> str:
    """The Lua function `rarely`, which makes these functions and returns them by name."""
    members = ", ".join(f"{name} = {name}" for name in names)
    return "\n".join(["local function rarely()", *_texts(names), f"return {{{members}}}", "end\n"])


def _literal(match: re.Match[str]) -> str:
    """A constant as Lua writes it: a number, a text, a set, a table of texts."""
    value = keys.SCRIPT_CONSTANTS[match[1]][match[2]]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, Mapping):
        members = [f"{word} = '{text}'" for word, text in value.items()]
        return f"({{{', '.join(members)}}})"
    assert isinstance(value, frozenset)
    return f"({{{', '.join(f'{word} = true' for word in sorted(value))}}})"
