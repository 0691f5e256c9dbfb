"""A request to the HTTP API as a value, and the steps of which everything a client does consists.

What a client does is a `Plan`: a generator that yields steps and is sent what came of them. Two small runners carry
them out, one that blocks and one that awaits (`http`); nothing here does any I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from taskpool.types import TaskSpec

T = TypeVar("T")


class Answer(NamedTuple):
    """What the API answered. The names of `headers` are in lower case; of a stream that begins there is no `body`."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Lost(NamedTuple):
    """No answer came. `was_sent`: the request may have been carried out all the same."""

    why: str
    was_sent: bool


@dataclass(frozen=True, slots=True)
class About:
    """What a request is about, which an error's answer doesn't repeat: a task, or tasks that are to be."""

    id: str = ""
    specs: Sequence[TaskSpec] = ()
    prefix: str = ""
    """Before the index of one of them, in pointers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """One request, and the function that turns an answer with a status of 2xx into a value."""

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    again: bool = True
    """Sending it twice is as good as once: when its answer is lost, it may be sent again."""
    waits_s: float = 0.0
    """How long the API may take on purpose, on top of the usual time for an answer."""
    streams: bool = False
    """The answer's body is read as it comes, with `Read`."""
    about: About = field(default_factory=About)


class Send(NamedTuple):
    """Send a request; what comes back is an `Answer` or `Lost`."""

    request: Request[Any]


class Read(NamedTuple):
    """Read on in the stream that was opened last; what comes back is bytes, or None when it has ended or was cut."""


class Sleep(NamedTuple):
    """Let so much time pass."""

    seconds: float


class Tell(NamedTuple):
    """Hand a value to whoever iterates."""

    value: Any


Step = Send | Read | Sleep | Tell
Plan = Generator[Step, Any, T]
