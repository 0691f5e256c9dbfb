"""Every error reply of Redis 6.2 to 8 and Valkey is classified, in the forms that each release gives it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable
from taskpool.redis import keys, replies, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call
from taskpool.redis.replies import Meaning, ReplyFault, WrongServer, meaning_of
from taskpool.redis.store import Store
from tests.states import World

M = Meaning
SHA = "f_1c8cdf4a3eabe3865eb118952011be1bf13f2ee9"
OLD = f"ERR Error running script (call to {SHA}): @user_script:161: "
NEW = f" script: {SHA[2:]}, on @user_script:161."

PLAIN = {
    "LOADING Redis is loading the dataset in memory": M.AWAY,
    "LOADING Valkey is loading the dataset in memory": M.AWAY,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": M.AWAY,
    "BUSY Valkey is busy running a module command.": M.AWAY,
    "NOREPLICAS Not enough good replicas to write.": M.AWAY,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": M.AWAY,
    "MISCONF Errors writing to the AOF file: No space left on device": M.AWAY,
    "TRYAGAIN Multiple keys request during rehashing of slot": M.AWAY,
    "UNKILLABLE Sorry the script already executed write commands against the dataset.": M.AWAY,
    "NOTBUSY No scripts in execution right now.": M.AWAY,
    "INPROG Failover already in progress": M.AWAY,
    "NOGOODSLAVE No suitable replica to promote": M.AWAY,
    "IOERR error or timeout writing to target instance": M.AWAY,
    "EXECABORT Transaction discarded because of previous errors.": M.AWAY,
    "NOPERM User someone has no permissions to run the 'evalsha' command": M.AWAY,
    "NOPERM this user has no permissions to access one of the keys used as arguments": M.AWAY,
    "WRONGPASS invalid username-password pair or user is disabled.": M.AWAY,
    "NOPROTO unsupported protocol version": M.AWAY,
    "CROSSSLOT Keys in request don't hash to the same slot": M.AWAY,
    "OOM command not allowed when used memory > 'maxmemory'.": M.FULL,
    "NOAUTH Authentication required.": M.WRONG_SERVER,
    "DENIED Redis is running in protected mode because protected mode is enabled": M.WRONG_SERVER,
    "DENIED Running in protected mode because protected mode is enabled": M.WRONG_SERVER,
    "READONLY You can't write against a read only replica.": M.WRONG_SERVER,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": M.WRONG_SERVER,
    "NOMASTERLINK Can't SYNC while not connected with my master": M.WRONG_SERVER,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": M.WRONG_SERVER,
    "REDIRECT 127.0.0.1:6380": M.WRONG_SERVER,
    "CLUSTERDOWN The cluster is down": M.WRONG_SERVER,
    "MOVED 3999 127.0.0.1:6381": M.WRONG_SERVER,
    "ASK 3999 127.0.0.1:6381": M.WRONG_SERVER,
    "NOSCRIPT No matching script. Please use EVAL.": M.NO_SCRIPT,
    "NOSCRIPT No matching script.": M.NO_SCRIPT,
    "WRONGTYPE Operation against a key holding the wrong kind of value": M.FAULT,
    "INVALIDOBJ Corrupted HLL object detected": M.FAULT,
    "NOGROUP No such key 'k' or consumer group 'g'": M.FAULT,
    "BUSYGROUP Consumer Group name already exists": M.FAULT,
    "BUSYKEY Target key name already exists.": M.FAULT,
    "ERR max number of clients reached": M.WRONG_SERVER,
    "ERR max number of clients + cluster connections reached": M.WRONG_SERVER,
    "ERR invalid password": M.WRONG_SERVER,
    "ERR unknown command 'EVALSHA', with args beginning with: ": M.AWAY,
    "ERR unknown command `EVALSHA`, with args beginning with: ": M.AWAY,
    "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\"": M.AWAY,
    "ERR DB index is out of range": M.AWAY,
    "ERR Error running script: not enough memory": M.AWAY,
    "ERR value is not an integer or out of range": M.FAULT,
    "ERR hash value is not an integer": M.FAULT,
    "ERR value is not a valid float": M.FAULT,
    "ERR min or max is not a float": M.FAULT,
    "ERR syntax error": M.FAULT,
    "ERR wrong number of arguments for 'hset' command": M.FAULT,
    "ERR invalid expire time in 'set' command": M.FAULT,
    "ERR Invalid stream ID specified as stream command argument": M.FAULT,
    "ERR a sentence of the next release": M.UNKNOWN,
    "NEWCODE a code of the next release": M.UNKNOWN,
    "NEWCODE": M.UNKNOWN,
    "": M.UNKNOWN,
}  # fmt: skip
"""Replies to a command of its own."""

INSIDE = {
    f"{OLD}@user_script: 161: -NOREPLICAS Not enough good replicas to write.": M.AWAY,
    f"NOREPLICAS Not enough good replicas to write.{NEW}": M.AWAY,
    f"{OLD}@user_script: 161: -MISCONF Redis is configured to save RDB snapshots, but": M.AWAY,
    f"MISCONF Errors writing to the AOF file: No space left on device{NEW}": M.AWAY,
    f"{OLD}@user_script: 161: -OOM command not allowed when used memory > 'maxmemory'.": M.FULL,
    f"OOM command not allowed when used memory > 'maxmemory'.{NEW}": M.FULL,
    f"{OLD}@user_script: 161: -READONLY You can't write against a read only replica.": M.WRONG_SERVER,
    f"READONLY You can't write against a read only replica.{NEW}": M.WRONG_SERVER,
    f"{OLD}@user_script: 161: The user executing the script can't run this command or subcommand": M.AWAY,
    f"{OLD}@user_script: 161: The user executing the script can't access at least one of the keys": M.AWAY,
    f"ERR ACL failure in script: User x has no permissions to run the 'del' command{NEW}": M.AWAY,
    f"NOPERM ACL failure in script: User x has no permissions to run the 'del' command{NEW}": M.AWAY,
    f"{OLD}@user_script: 161: Unknown Redis command called from Lua script": M.AWAY,
    f"ERR Unknown Redis command called from script{NEW}": M.AWAY,
    f"ERR This Redis command is not allowed from script{NEW}": M.AWAY,
    f"{OLD}Script killed by user with SCRIPT KILL...": M.AWAY,
    f"ERR Error running script (call to {SHA}): @user_script:1: Script killed by user with SCRIPT KILL...": M.AWAY,
    f"ERR Script killed by user with SCRIPT KILL.{NEW}": M.AWAY,
    f"{OLD}WRONGTYPE Operation against a key holding the wrong kind of value": M.FAULT,
    f"WRONGTYPE Operation against a key holding the wrong kind of value{NEW}": M.FAULT,
    f"{OLD}ERR value is not an integer or out of range": M.FAULT,
    f"ERR value is not an integer or out of range{NEW}": M.FAULT,
    f"{OLD}user_script:161: attempt to perform arithmetic on a nil value": M.FAULT,
    f"ERR user_script:161: attempt to perform arithmetic on a nil value{NEW}": M.FAULT,
    f"{OLD}user_script:161: Expected object key string but found T_END at character 2": M.FAULT,
    f"{OLD}user_script:161: too many results to unpack": M.FAULT,
    f"{OLD}@user_script: 161: Wrong number of args calling Redis command From Lua script": M.FAULT,
    f"{OLD}@user_script: 161: -NEWCODE a code of the next release": M.UNKNOWN,
    f"NEWCODE a code of the next release{NEW}": M.UNKNOWN,
    f"ERR a sentence of the next release{NEW}": M.UNKNOWN,
}
"""What a command inside a script ran into: as Redis 6.2 says it, and as later ones do."""


@pytest.mark.parametrize("text", [*PLAIN, *INSIDE])
def test_each_reply_has_its_meaning(text: str) -> None:
    assert meaning_of(text) is {**PLAIN, **INSIDE}[text]


class Answering:
    """A connection at whose other end every command is answered with the same replies."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.closed = answers, 0

    def exchange(self, commands: Sequence[Any], timeout_s: float) -> list[Any]:
        return list(self.answers)

    def close(self) -> None:
        self.closed += 1


class AwaitedAnswering(Answering):
    async def exchange(self, commands: Sequence[Any], timeout_s: float) -> list[Any]:  # type: ignore[override]
        return list(self.answers)


ERRORS = {
    M.AWAY: RedisRefused,
    M.WRONG_SERVER: WrongServer,
    M.FULL: RedisFull,
    M.FAULT: ReplyFault,
    M.UNKNOWN: RedisRefused,
}
WORD: Call[bytes] = Call(("GET", "k"), bytes)


@pytest.mark.parametrize("text", [text for text, meaning in {**PLAIN, **INSIDE}.items() if meaning is not M.NO_SCRIPT])
def test_both_stores_raise_what_the_meaning_asks_for(text: str) -> None:
    meaning = meaning_of(text)
    blocking, awaiting = (kind(b"1", hiredis.ReplyError(text)) for kind in (Answering, AwaitedAnswering))

    with pytest.raises(ERRORS[meaning]) as found:
        Store(transport=blocking).run_many([WORD, WORD])
    with pytest.raises(ERRORS[meaning]):
        asyncio.run(AsyncStore(transport=awaiting).run_many([WORD, WORD]))  # type: ignore[arg-type]

    assert isinstance(found.value, RedisUnavailable) is (meaning is not M.FAULT)
    assert blocking.closed == awaiting.closed == int(meaning is M.WRONG_SERVER)
    if isinstance(found.value, RedisRefused):
        assert (found.value.at, found.value.is_known) == (1, meaning is not M.UNKNOWN)
    if isinstance(found.value, ReplyFault):
        assert (found.value.at, found.value.value(0)) == (1, b"1")


def test_an_unknown_reply_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(replies, "_logged_mono", {})

    def ask(text: str) -> int:
        with caplog.at_level(logging.WARNING), pytest.raises(RedisRefused):
            Store(transport=Answering(hiredis.ReplyError(text))).run(WORD)
        return len(caplog.records)

    counts = [ask("NEWCODE one"), ask("NEWCODE one"), ask("OTHERCODE"), ask("LOADING")]
    now += replies.LOG_AGAIN_S
    counts.append(ask("NEWCODE one"))

    assert counts == [1, 1, 2, 2, 3]


def test_a_damaged_record_is_a_fault_and_a_server_without_replicas_is_not(world: World) -> None:
    world.redis.set("rq:job:a", "not a hash")

    with pytest.raises(ReplyFault):
        world.run(scripts.purge("a"))
    world.redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(RedisRefused, match="NOREPLICAS"):
            world.run(scripts.count({"n": 1}))
        with pytest.raises(RedisRefused, match="NOREPLICAS"):
            world.run(Call(("DEL", keys.NOTHING), int))
    finally:
        world.redis.config_set("min-replicas-to-write", 0)

    assert world.run(scripts.count({"n": 1})) == "ok"
