"""Duties wait for Redis during an outage, and give up a step that keeps failing although Redis serves."""

from __future__ import annotations

import asyncio

import pytest

from taskpool.errors import RedisRefused
from taskpool.redis.replies import ReplyFault
from tests.support import PATIENCE_S
from workers import duties
from workers.duties import Outage, insist, repeat

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "AWAY_RETRY_S", 0)
    monkeypatch.setattr(duties, "FAULT_RETRY_S", 0)


class Step:
    """Fails with these errors, one after the other, and then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


async def test_a_step_that_redis_refuses_is_tried_until_it_works() -> None:
    step, outage = Step(*[RedisRefused("NOREPLICAS")] * 50), Outage()

    await insist(step, outage)

    assert step.calls == 51
    assert 0 <= outage.over_for_s() < 60


async def test_a_step_that_fails_although_redis_serves_is_given_up_with_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    step, outage = Step(*[ReplyFault("WRONGTYPE")] * 50), Outage()

    await insist(step, outage)

    assert step.calls == duties.FAULT_TRIES
    assert "given up" in caplog.text
    assert outage.over_for_s() > 0


async def test_a_step_is_tried_again_after_faults_that_pass() -> None:
    step = Step(ReplyFault("WRONGTYPE"), RedisRefused("LOADING"), ReplyFault("WRONGTYPE"))

    await insist(step, Outage())

    assert step.calls == 4


async def test_a_duty_that_is_cancelled_at_the_moment_it_wakes_up_ends() -> None:
    started, wake = asyncio.Event(), asyncio.Event()

    async def step() -> float:
        started.set()
        return 60.0

    duty = asyncio.create_task(repeat("duty", step, wake=wake))
    await started.wait()
    await asyncio.sleep(0)
    wake.set()
    duty.cancel()
    await asyncio.wait([duty], timeout=PATIENCE_S)

    assert duty.cancelled()
