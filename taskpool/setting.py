"""One row of the table of settings: what it accepts, in words, and how text becomes its value."""

from __future__ import annotations

import difflib
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from taskpool.connection.sentinel_url import FORM, SCHEME, TLS_SCHEME, SentinelUrl, is_sentinel_url
from taskpool.names import BUILTIN_TYPES, PATH_PREFIX_FORM, path_prefix, queue_name_fault
from taskpool.seconds import LONGEST_S
from taskpool.webhooks.target import entry_fault

Kind = Literal[
    "text", "integer", "seconds", "list", "queues", "targets", "networks", "builtins", "choice", "url", "http", "path"
]

PREFIX: Final = "TASKPOOL_"
REDIS_SCHEMES: Final = ("redis", "rediss", "unix", SCHEME, TLS_SCHEME)


def setting(
    default: Any,
    help: str,
    kind: Kind,
    *,
    least: float = 0,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """The field of a settings class: its default, what it is, its `kind` of value and which of these are allowed.

    `most`: None is ten years for seconds, and no limit for other numbers.
    """
    if most is None:
        most = LONGEST_S if kind == "seconds" else math.inf
    metadata = {"help": help, "kind": kind, "least": least, "most": most, "choices": choices}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class SettingField:
    """One row of the table of settings. `parse` turns text into the value."""

    name: str
    kind: Kind
    default: Any
    help: str
    least: float
    most: float
    choices: tuple[str, ...]

    @property
    def env(self) -> str:
        """The variable's name, such as TASKPOOL_DATA_DIR."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The flag's name, such as --data-dir."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether it takes several names."""
        return self.kind in ("list", "queues", "targets", "networks")

    @property
    def accepts(self) -> str:
        """What a value may be, in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind in ("integer", "seconds"):
            noun = "a whole number" if self.kind == "integer" else "a number of seconds"
            return (
                f"{noun} of {self.least:g} or more"
                if math.isinf(self.most)
                else (f"{noun} from {self.least:g} to {self.most:.12g}")
            )
        return {
            "text": "text",
            "list": "names, separated by commas",
            "queues": "names, separated by commas",
            "targets": "host names, addresses and networks like 10.0.0.0/8, separated by commas",
            "networks": "addresses and networks like 10.0.0.0/8, separated by commas",
            "builtins": "true (all), false (none), or some of " + ", ".join(BUILTIN_TYPES) + ", separated by commas",
            "http": "http://HOST:PORT or https://HOST:PORT, with a path if need be",
            "path": PATH_PREFIX_FORM,
            "url": f"redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH or {FORM}",
        }[self.kind]

    def parse(self, raw: object) -> Any:
        """The value of `raw`: text, or a value of the right type already.

        Raises:
            ValueError: it isn't one; the text names the value and what is accepted.
        """
        if self.is_list:
            parts = raw if isinstance(raw, list | tuple) else str(raw).split(",")
            names = tuple(name for part in parts if (name := str(part).strip()))
            for name in names:
                if fault := self._entry_fault(name):
                    raise ValueError(fault)
            return names
        text = str(raw).strip()
        if self.kind == "builtins":
            return _builtins(raw if isinstance(raw, list | tuple) else text.split(","), self.accepts)
        if self.kind == "url":
            return _redis_url(text, self.accepts)
        if self.kind == "http":
            return _http_url(text, self.accepts)
        if self.kind == "path":
            return path_prefix(text)
        try:
            return self._scalar(text)
        except (KeyError, ValueError):
            near = difflib.get_close_matches(text.lower(), self.choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{text!r} is not {self.accepts}{hint}") from None

    def _entry_fault(self, name: str) -> str | None:
        if self.kind == "queues":
            return queue_name_fault(name)
        if self.kind == "targets":
            return entry_fault(name)
        if self.kind == "networks":
            try:
                ipaddress.ip_network(name)
            except ValueError:
                return f"{name!r} is no address or network; accepted: {self.accepts}"
        return None

    def _scalar(self, text: str) -> Any:
        match self.kind:
            case "integer" | "seconds":
                number = int(text) if self.kind == "integer" else float(text)
                if not (self.least <= number <= self.most and math.isfinite(number)):
                    raise ValueError
                return number
            case "choice":
                return self.choices[self.choices.index(text.lower())]
            case _:
                if not text:
                    raise ValueError
                return text


_SWITCH: Final = {
    "true": True, "yes": True, "on": True, "1": True, "all": True,
    "false": False, "no": False, "off": False, "0": False, "none": False,
}  # fmt: skip


def _builtins(parts: Sequence[object], accepts: str) -> bool | tuple[str, ...]:
    """All built-in types, none of them, or the names of some."""
    names = tuple(dict.fromkeys(name for part in parts if (name := str(part).strip())))
    if len(names) == 1 and (switch := _SWITCH.get(names[0].lower())) is not None:
        return switch
    for name in names:
        if name not in BUILTIN_TYPES:
            near = difflib.get_close_matches(name, BUILTIN_TYPES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name!r} is not {accepts}{hint}")
    return names


def _http_url(text: str, accepts: str) -> str:
    try:
        parts = urlsplit(text)
        complete = parts.scheme in ("http", "https") and parts.hostname
        _ = parts.port  # the one part that urlsplit leaves unchecked
    except ValueError:
        complete = None
    if not complete:
        raise ValueError(f"not a URL; accepted: {accepts}")
    if parts.username is not None:
        raise ValueError("a server's URL takes no user and password: there are API keys")
    return text


def _redis_url(text: str, accepts: str) -> str:
    if is_sentinel_url(text):
        try:
            SentinelUrl.parse(text)
        except ValueError as fault:
            raise ValueError(f"{fault}; accepted: {accepts}") from None
        return text
    try:
        parts = urlsplit(text)
        complete = parts.path if parts.scheme == "unix" else parts.hostname
        _ = parts.port  # the one part that urlsplit leaves unchecked
    except ValueError:
        raise ValueError(f"not a URL; accepted: {accepts}") from None
    if parts.scheme not in REDIS_SCHEMES:
        raise ValueError(f"the scheme {parts.scheme!r} is not supported; accepted: {accepts}")
    if not complete:
        raise ValueError(f"names no {'path' if parts.scheme == 'unix' else 'host'}; accepted: {accepts}")
    return text
