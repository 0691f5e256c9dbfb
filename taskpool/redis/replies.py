"""What each error reply of Redis means for the call that got it: the one table of Redis 6.2 to 8 and Valkey 7.2 to 8.

The rule: only a reply that is known to be about one record or one call is a `FAULT`. Every other reply, also one that
this table doesn't know, says that Redis can't serve at the moment. The caller keeps what it has and tries again.
"""

from __future__ import annotations

import enum
import logging
import re
import time
from collections.abc import Mapping
from typing import Final

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable

log = logging.getLogger("taskpool")

TOLD_AGAIN_S: Final = 60.0
TOLD_MOST: Final = 100
TEXT_MOST: Final = 300


class Meaning(enum.Enum):
    """What the caller can conclude from an error reply."""

    AWAY = "away"
    """Redis can't serve at the moment. The same call may work later, over the same connection."""
    WRONG_SERVER = "wrong server"
    """This connection leads to a server that can't serve us. A new connection may find the right one."""
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
    # The user may not do it, which an administrator can change at any time.
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
    # A key holds something else than it should, or the call is wrong.
    "WRONGTYPE": Meaning.FAULT,
    "INVALIDOBJ": Meaning.FAULT,
    "NOGROUP": Meaning.FAULT,
    "BUSYGROUP": Meaning.FAULT,
    "BUSYKEY": Meaning.FAULT,
    "NOSUB": Meaning.FAULT,
}
"""By the first word of the reply. Redis's own, but for those that no command of ours can get (`NOTREADY`, modules)."""

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
"""Replies that begin with `ERR`, or come from inside a script without a word of their own. The first match counts."""

LASTING_CODES: Final = frozenset(
    ("NOPERM", "WRONGPASS", "NOAUTH", "NOPROTO", "DENIED", "READONLY", "CLUSTERDOWN", "MOVED", "ASK", "CROSSSLOT")
)
_LASTING: Final = re.compile("|".join((_NO_RIGHT, _NO_COMMAND, _NOT_ALLOWED, _NO_PASSWORD, _NO_DATABASE)))
"""Replies that stay the same until someone changes a setting of Redis, or ours."""

# Redis 6.2: "ERR Error running script (call to f_<sha>): @user_script:161: [@user_script: 161: ]" and what went wrong.
_RUNNING: Final = re.compile(r"^ERR Error running script \(call to \w+\): (?:@[\w:]+: ?\d+: )*")
# Redis 7: what went wrong, and then " script: <sha>, on @user_script:161."
_PLACE: Final = re.compile(r" script: \w+, on @[\w:]+:\d+\.?$")
# An error of Lua itself, in either: "user_script:161: attempt to index a nil value".
_LUA: Final = re.compile(r"^(?:ERR )?@?user_script: ?\d+: ")
_CODE: Final = re.compile(r"^-?([A-Z][A-Z0-9]+)(?= |$)")


def meaning_of(text: str) -> Meaning:
    """What an error reply means; `text` is the reply without the leading ``-``."""
    code, said, is_luas = _parts(text)
    if code:
        return CODES.get(code, Meaning.UNKNOWN)
    for pattern, meaning in TEXTS:
        if pattern.search(said):
            return meaning
    return Meaning.FAULT if is_luas else Meaning.UNKNOWN


def may_pass(text: str) -> bool:
    """Whether Redis may serve soon, without a change of any setting, although it refuses a part that starts.

    Yes: too few replicas, a full disk, a slow script, a reply that the table doesn't know. No: a wrong password,
    missing rights, a replica. A part that starts reports those at once, so that the operator sees them.
    """
    if meaning_of(text) in (Meaning.FAULT, Meaning.NO_SCRIPT):
        return False
    code, said, _ = _parts(text)
    return code not in LASTING_CODES if code else not _LASTING.search(said)


def _parts(text: str) -> tuple[str, str, bool]:
    """The reply's own word ("" for `ERR`), its text without where it comes from, and whether it is an error of Lua."""
    said = _PLACE.sub("", _RUNNING.sub("", text))
    is_luas = _LUA.match(said) is not None
    said = _LUA.sub("", said)
    code = _CODE.match(said)
    if code is not None and code[1] != "ERR":
        return code[1], said, is_luas
    return "", said.removeprefix("-").removeprefix("ERR "), is_luas


def unavailable(text: str, meaning: Meaning) -> RedisUnavailable:
    """The exception for a reply by which Redis says that it can't serve; a reply that isn't known is logged."""
    if meaning is Meaning.FULL:
        return RedisFull(f"Redis can't serve now: {text}")
    if meaning is Meaning.UNKNOWN:
        _unknown.tell(text)
    return RedisRefused(f"Redis can't serve now: {text}", is_known=meaning is not Meaning.UNKNOWN)


class _Unknown:
    """Logs replies that the table doesn't know: each once a minute."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def tell(self, text: str) -> None:
        kind, now = _PLACE.sub("", _RUNNING.sub("", text))[:40], time.monotonic()
        # No lock: a signal handler or a forked child might wait for it for ever. Two threads may log the same.
        if now - self._told.get(kind, -TOLD_AGAIN_S) < TOLD_AGAIN_S:
            return
        if len(self._told) >= TOLD_MOST:
            self._told.clear()
        self._told[kind] = now
        log.warning("unknown error reply of Redis, taken for an outage: %s", text[:TEXT_MOST])


_unknown = _Unknown()
