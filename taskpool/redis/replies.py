"""What an error reply of Redis 6.2 to 8 or Valkey 7.2 to 8 means for the call that got it, and the exception for it.

The rule: only a reply that is known to be about one record or one call is a `FAULT`. Every other reply, including one
that the table doesn't know, means that Redis can't serve at the moment. The caller keeps its data and tries again.
"""

from __future__ import annotations

import enum
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import hiredis

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable, TaskpoolError
from taskpool.redis.calls import Call, Part

log = logging.getLogger("taskpool")

LOG_AGAIN_S: Final = 60.0
LOGGED_MOST: Final = 100
TEXT_MOST: Final = 300
REPLY_TIMEOUT_S: Final = 10.0


class Meaning(enum.Enum):
    """What the caller can conclude from an error reply."""

    AWAY = "away"
    """Redis can't serve at the moment. The same call may work later, over the same connection."""
    WRONG_SERVER = "wrong server"
    """This server can't serve us. A new connection may find the right one."""
    FULL = "full"
    """The memory limit is reached. The call changed nothing."""
    NO_SCRIPT = "no script"
    """Redis doesn't know the script. Send its text."""
    FAULT = "fault"
    """The call itself fails: a damaged record, or a bug of ours. Redis serves other calls."""
    UNKNOWN = "unknown"
    """The table doesn't know this reply. Treated as `AWAY`, with a log line."""


CODES: Final[Mapping[str, Meaning]] = {
    # The server can't take any command, or no writes, at the moment.
    "LOADING": Meaning.AWAY,  # reads its data after a start
    "BUSY": Meaning.AWAY,  # a slow script, function or module command runs
    "NOREPLICAS": Meaning.AWAY,  # fewer replicas than min-replicas-to-write
    "MISCONF": Meaning.AWAY,  # a snapshot or a write of the append-only file failed
    "OOM": Meaning.FULL,
    "TRYAGAIN": Meaning.AWAY,
    "UNKILLABLE": Meaning.AWAY,
    "NOTBUSY": Meaning.AWAY,
    "INPROG": Meaning.AWAY,  # a failover runs
    "NOGOODSLAVE": Meaning.AWAY,
    "NOQUORUM": Meaning.AWAY,
    "IOERR": Meaning.AWAY,
    "EXECABORT": Meaning.AWAY,  # a command of a transaction was refused; its own reply says why
    # Our user lacks the right, which an administrator can change at any time.
    "NOPERM": Meaning.AWAY,
    "WRONGPASS": Meaning.AWAY,
    "NOPROTO": Meaning.AWAY,
    # The server is not the one that can serve us, or doesn't know who we are.
    "NOAUTH": Meaning.WRONG_SERVER,  # a password was set, or the user was removed
    "DENIED": Meaning.WRONG_SERVER,  # protected mode; Redis closes the connection
    "READONLY": Meaning.WRONG_SERVER,  # a replica
    "MASTERDOWN": Meaning.WRONG_SERVER,  # a replica without its master
    "NOMASTERLINK": Meaning.WRONG_SERVER,
    "UNBLOCKED": Meaning.WRONG_SERVER,  # it became a replica while a command waited
    "REDIRECT": Meaning.WRONG_SERVER,  # Valkey 8: a replica that names its primary
    # Redis Cluster, which taskpool doesn't use. A proxy or a cluster mode by mistake; it may be undone.
    "CLUSTERDOWN": Meaning.WRONG_SERVER,
    "MOVED": Meaning.WRONG_SERVER,
    "ASK": Meaning.WRONG_SERVER,
    "CROSSSLOT": Meaning.AWAY,
    "NOSCRIPT": Meaning.NO_SCRIPT,
    # A key has a value of another kind, or the call is wrong.
    "WRONGTYPE": Meaning.FAULT,
    "INVALIDOBJ": Meaning.FAULT,
    "NOGROUP": Meaning.FAULT,
    "BUSYGROUP": Meaning.FAULT,
    "BUSYKEY": Meaning.FAULT,
    "NOSUB": Meaning.FAULT,
}
"""By the first word of the reply. Words that no command of ours can get (`NOTREADY`, those of modules) are missing."""

_NO_RIGHT: Final = r"The user executing the script|ACL failure in script|[Nn]o permissions? to"
_NO_COMMAND: Final = r"unknown (sub)?command|Unknown (sub)?command|Unknown Redis command"  # renamed or disabled
_NOT_ALLOWED: Final = r"command (is )?not allowed|not allowed while|not allowed in this context"
_NO_PASSWORD: Final = r"invalid password|without any password configured|Authentication required"
_NO_DATABASE: Final = r"DB index is out of range|invalid DB index|SELECT is not allowed"

TEXTS: Final[tuple[tuple[re.Pattern[str], Meaning], ...]] = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"max number of clients|^max.*clients", Meaning.WRONG_SERVER),
        (r"[Ss]cript killed by user", Meaning.AWAY),  # SCRIPT KILL: it had written nothing
        (_NO_RIGHT, Meaning.AWAY),
        (r"not enough memory", Meaning.AWAY),
        (_NO_COMMAND, Meaning.AWAY),
        (_NOT_ALLOWED, Meaning.AWAY),
        (_NO_PASSWORD, Meaning.WRONG_SERVER),
        (_NO_DATABASE, Meaning.AWAY),
        (r"replica-serve-stale-data|[Cc]an't (SYNC|SUBSCRIBE)", Meaning.AWAY),
        (r"[Ee]rrors? writing to|[Cc]luster support disabled|[Ff]ailover|[Ff]ailing over", Meaning.AWAY),
        (r"^[Ss]erver closed the connection|[Cc]onnection (closed|lost|reset)", Meaning.WRONG_SERVER),
        (r"value is not (an integer|a valid float|a float)|is not an integer or out of range", Meaning.FAULT),
        (r"min or max is not|not a valid float|resulting score is not a number", Meaning.FAULT),
        (r"increment or decrement would overflow|would produce NaN or Infinity", Meaning.FAULT),
        (r"[Ii]nvalid stream ID|is equal or smaller than the target|must be greater than 0-0", Meaning.FAULT),
        (r"[Ii]nvalid expire time|syntax error|[Ww]rong number of (args|arguments)", Meaning.FAULT),
        (r"string exceeds maximum allowed size|index out of range|no such key|[Pp]rotocol error", Meaning.FAULT),
        (r"Lua redis.* command arguments must be|Error compiling script", Meaning.FAULT),
    )
)
"""For replies that begin with `ERR`, or come from inside a script without their own word. The first match counts."""

LASTING_CODES: Final = frozenset(
    ("NOPERM", "WRONGPASS", "NOAUTH", "NOPROTO", "DENIED", "READONLY", "CLUSTERDOWN", "MOVED", "ASK", "CROSSSLOT")
)
_LASTING: Final = re.compile("|".join((_NO_RIGHT, _NO_COMMAND, _NOT_ALLOWED, _NO_PASSWORD, _NO_DATABASE)))
"""Replies that stay the same until someone changes a setting of Redis, or ours."""

# Redis 6.2: "ERR Error running script (call to f_<sha>): @user_script:161: [@user_script: 161: ]" before the error.
_RUNNING: Final = re.compile(r"^ERR Error running script \(call to \w+\): (?:@[\w:]+: ?\d+: )*")
# Redis 7: " script: <sha>, on @user_script:161." after the error.
_PLACE: Final = re.compile(r" script: \w+, on @[\w:]+:\d+\.?$")
# An error of Lua itself, in either: "user_script:161: attempt to index a nil value".
_LUA: Final = re.compile(r"^(?:ERR )?@?user_script: ?\d+: ")
_CODE: Final = re.compile(r"^-?([A-Z][A-Z0-9]+)(?= |$)")


def meaning_of(text: str) -> Meaning:
    """What an error reply means; `text` is the reply without the leading ``-``."""
    code, message, is_lua = _parts(text)
    if code:
        return CODES.get(code, Meaning.UNKNOWN)
    for pattern, meaning in TEXTS:
        if pattern.search(message):
            return meaning
    return Meaning.FAULT if is_lua else Meaning.UNKNOWN


def may_pass(text: str) -> bool:
    """Whether Redis may serve soon, without a change of any setting, although it refuses a part that starts.

    True for too few replicas, a full disk, a slow script, a reply that the table doesn't know. False for a wrong
    password, missing rights, a replica: a part that starts reports those at once, so that the operator sees them.
    """
    if meaning_of(text) in (Meaning.FAULT, Meaning.NO_SCRIPT):
        return False
    code, message, _ = _parts(text)
    return code not in LASTING_CODES if code else not _LASTING.search(message)


def _parts(text: str) -> tuple[str, str, bool]:
    """The reply's first word ("" for `ERR`), its message without the place in a script, and whether Lua raised it."""
    message = _PLACE.sub("", _RUNNING.sub("", text))
    is_lua = _LUA.match(message) is not None
    message = _LUA.sub("", message)
    code = _CODE.match(message)
    if code is not None and code[1] != "ERR":
        return code[1], message, is_lua
    return "", message.removeprefix("-").removeprefix("ERR "), is_lua


class WrongServer(RedisRefused):
    """Raised when the server at the other end of this connection can't serve us; a new connection may find another."""


class ReplyFault(TaskpoolError):
    """Raised when a call fails although Redis serves: a damaged record, or a bug of ours.

    `at` is the place of that call among those that were sent together, `before` the earlier ones with their replies.
    """

    def __init__(self, message: str, at: int = 0, before: Sequence[tuple[Call[Any], Any]] = ()) -> None:
        super().__init__(message)
        self.at = at
        self._before = before

    def value(self, at: int) -> Any:
        """The value of a call before the one that failed: Redis carried it out."""
        call, reply = self._before[at]
        return call.read(reply)


def values(calls: Sequence[Call[Any]], replies: Sequence[Any]) -> list[Any]:
    """The values of calls that got these replies.

    Raises:
        RedisUnavailable: one of the replies says that Redis can't serve.
        ReplyFault: one of the calls fails by itself.
    """
    for at, reply in enumerate(replies):
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            meaning = meaning_of(text)
            if meaning is not Meaning.FAULT:
                raise _refusal(text, meaning, at)
            if not calls[at].reads_faults:
                raise ReplyFault(f"Redis answered: {text}", at, tuple(zip(calls[:at], replies[:at], strict=True)))
    return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]


def timeout_of(calls: Sequence[Call[Any]]) -> float:
    """How many seconds the replies to these calls may take. Mostly the same: to set another timeout on a socket costs a
    system call."""
    for call in calls:
        if call.blocks_s:
            break
    else:
        return REPLY_TIMEOUT_S
    return max(REPLY_TIMEOUT_S, REPLY_TIMEOUT_S * 0.9 + sum([call.blocks_s for call in calls]))


def has_errors(replies: Sequence[Any]) -> bool:
    """Whether one of the replies is an error."""
    for reply in replies:  # noqa: SIM110 - a generator costs more than the loop
        if isinstance(reply, hiredis.ReplyError):
            return True
    return False


def unknown_scripts(replies: Sequence[Any]) -> list[int]:
    """The places of the calls whose script Redis doesn't know."""
    return [
        at
        for at, reply in enumerate(replies)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")
    ]


def with_text(call: Call[Any]) -> Sequence[Part]:
    """The command of a call with the script's text in place of its hash. Redis knows the script from then on."""
    assert call.script is not None
    return ("EVAL", call.script, *call.command[2:])


def _refusal(text: str, meaning: Meaning, at: int) -> RedisUnavailable:
    message = f"Redis can't serve now: {text}"
    if meaning is Meaning.FULL:
        return RedisFull(message)
    if meaning is Meaning.UNKNOWN:
        _log_unknown(text)
    kind = WrongServer if meaning is Meaning.WRONG_SERVER else RedisRefused
    error = kind(message, is_known=meaning is not Meaning.UNKNOWN)
    error.at = at
    return error


_logged_mono: Final[dict[str, float]] = {}


def _log_unknown(text: str) -> None:
    """Log a reply that the table doesn't know, each kind once a minute."""
    kind, now = _PLACE.sub("", _RUNNING.sub("", text))[:40], time.monotonic()
    # No lock: a signal handler or a forked child might wait for it for ever. Two threads may log the same.
    if now - _logged_mono.get(kind, -LOG_AGAIN_S) < LOG_AGAIN_S:
        return
    if len(_logged_mono) >= LOGGED_MOST:
        _logged_mono.clear()
    _logged_mono[kind] = now
    log.warning("unknown error reply of Redis, taken for an outage: %s", text[:TEXT_MOST])
