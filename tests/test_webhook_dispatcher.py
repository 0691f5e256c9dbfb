"""From the outbox to the receiver: who gets which event, retries, and deliveries of a dead supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from taskpool.access.audit import Actor, read_audit
from taskpool.errors import DeliveryBusy, DeliveryNotFound, WebhookConflict, WebhookNotFound
from taskpool.redis import keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.types import TaskStatus
from taskpool.url_guard import Allowed
from taskpool.webhooks import delivery
from taskpool.webhooks import store as webhook_store
from taskpool.webhooks.delivery import Delivery, outbox_page
from taskpool.webhooks.endpoint import DeliveryStatus, NewWebhook, Webhook, WebhookFields
from tests.keys import ME
from tests.receiver import Received, Receiver, receiver
from tests.states import World
from tests.support import until
from workers.duties import Outage, repeat
from workers.webhook_dispatcher import ANSWER_S, AT_ONCE, BODY_S, DELAYS_S, LANE_MOST, Dispatcher, Sender

S = TaskStatus
ALLOWED = Allowed(["127.0.0.0/8"])


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


class Hooks:
    """Endpoints and deliveries of one world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def create(self, url: str, project: str | None = None, **fields: Any) -> Webhook:
        by = Actor(None, "a test", project, "here")
        plan = webhook_store.create_webhook(NewWebhook(url=url, **fields), ALLOWED, by, most=100)
        return self.world.store.carry_out(plan)

    def get(self, id: str, project: str | None = None) -> Webhook:
        return self.world.store.carry_out(webhook_store.get_webhook(id, project))

    def of(self, owner: str, **options: Any) -> list[Delivery]:
        """The deliveries to an endpoint, or about a task; of "" the dead ones of all."""
        which = "webhook" if owner.startswith(("wh_", "callback")) else "task"
        chosen: Any = {which: owner, **options}
        return list(self.world.store.carry_out(delivery.list_deliveries(**chosen)).items)

    def make_due(self) -> None:
        """Let the time of everything that waits come."""
        for key in self.world.redis.keys(keys.WEBHOOKS_WAITING + "*"):
            lane = key.decode().removeprefix(keys.WEBHOOKS_WAITING)
            for id in self.world.redis.zrange(key, 0, -1):
                self.world.redis.zadd(key, {id: 1})
            self.world.redis.zadd(keys.WEBHOOKS_LANES, {lane: 1})

    def end_leases(self) -> None:
        """Let every lease end."""
        for key in self.world.redis.keys(keys.WEBHOOKS_SENDING + "*"):
            lane = key.decode().removeprefix(keys.WEBHOOKS_SENDING)
            for id in self.world.redis.zrange(key, 0, -1):
                self.world.redis.zadd(key, {id: 1})
            self.world.redis.zadd(keys.WEBHOOKS_LANES, {lane: 1})

    def counted(self, what: str) -> int:
        return int(self.world.redis.hget(keys.COUNTERS, f"webhooks|{what}") or 0)


@pytest.fixture
def hooks(world: World) -> Hooks:
    return Hooks(world)


@asynccontextmanager
async def supervisor(world: World, name: str = "one", **options: Any) -> AsyncIterator[Dispatcher]:
    """A dispatcher that does its duty until the block ends."""
    store = AsyncStore(world.url)
    dispatcher = Dispatcher(store, name, ALLOWED, **options)
    duty = asyncio.create_task(repeat("webhooks", dispatcher.step, outage=Outage(), wake=dispatcher.wake))
    try:
        yield dispatcher
    finally:
        duty.cancel()
        await asyncio.wait([duty])
        await dispatcher.close(0)
        await store.close()


async def received(server: Receiver, count: int = 1) -> Sequence[Received]:
    await until(lambda: len(server.requests) >= count)
    return list(server.requests)


async def settled(hooks: Hooks, owner: str, status: str, attempts: int | None = None) -> Delivery:
    def look() -> Delivery | None:
        for each in hooks.of(owner):
            if each.status == status and attempts in (None, len(each.attempts)):
                return each
        return None

    found: Delivery = await until(look)
    return found


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_an_endpoint_gets_a_signed_document_when_a_task_ends(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url())
    world.end("a", tags=["x"])

    async with supervisor(world):
        (sent,) = await received(server)
        done = await settled(hooks, webhook.id, "delivered")

    message = Verifier(webhook.secret).verify(sent.body, sent.headers)
    data = message.pop("data")
    assert message.pop("time").endswith("Z")
    assert message == {
        "specversion": "1.0", "id": "a.3", "source": "urn:taskpool", "type": "taskpool.task.done", "subject": "a",
        "datacontenttype": "application/json",
    }  # fmt: skip
    assert data["created_at"] <= data["started_at"] <= data["ended_at"]
    assert {name: value for name, value in data.items() if not name.endswith("_at")} == {
        "id": "a", "type": "work", "status": "done", "queue": "default", "tags": ["x"], "attempt": 1, "seq": 3,
        "result": 42,
    }  # fmt: skip
    assert (done.id, done.task, done.event) == (sent.id, "a", "taskpool.task.done")
    assert [(each.outcome, each.status_code) for each in done.attempts] == [("delivered", 200)]
    assert world.redis.xlen(keys.WEBHOOKS_OUTBOX) == 0
    assert hooks.counted("delivered") == 1


async def test_a_callback_is_signed_with_the_secret_of_callbacks(world: World, hooks: Hooks, server: Receiver) -> None:
    world.end("a", S.FAILED, callback_url=server.url("/cb"))

    async with supervisor(world):
        (sent,) = await received(server)
        (done,) = await until(lambda: hooks.of("a"))

    message = Verifier(hooks.get("callback").secret).verify(sent.body, sent.headers)
    assert message["type"] == "taskpool.task.failed"
    assert message["data"]["error"] == "no luck"
    assert (done.webhook, done.url) == ("callback", server.url("/cb"))
    assert [each.id for each in hooks.of("callback")] == [done.id]


@pytest.mark.parametrize(
    ("filters", "sent"),
    [
        ({}, ["a", "b", "c"]),
        ({"types": ["work"]}, ["a", "c"]),
        ({"queues": ["mails"]}, ["b"]),
        ({"tags": ["y", "z"]}, ["a", "b"]),
        ({"statuses": ["failed", "canceled"]}, ["c"]),
        ({"types": ["work"], "tags": ["x"], "statuses": ["done"]}, ["a"]),
        ({"types": ["other"], "tags": ["nobody"]}, []),
        ({"enabled": False}, []),
        ({"events": ["failed"]}, ["c"]),
        ({"statuses": ["in_progress"]}, ["a", "b", "c"]),
        ({"events": ["queued", "started"], "queues": ["mails"]}, ["b", "b"]),
    ],
)
async def test_an_endpoint_gets_only_events_that_match_its_filters(
    world: World, hooks: Hooks, server: Receiver, filters: dict[str, Any], sent: list[str]
) -> None:
    hooks.create(server.url("/filtered"), **filters)
    hooks.create(server.url("/last"))

    world.end("a", tags=["x", "y"])
    world.end("b", tags=["z"], queue="mails", type="other")
    world.end("c", S.FAILED)
    async with supervisor(world):
        await until(lambda: len(server.at("/last")) == 3 and len(server.at("/filtered")) >= len(sent))
        await until(lambda: hooks.counted("delivered") == 3 + len(sent))

    assert sorted(each.message["subject"] for each in server.at("/filtered")) == sent


async def test_an_endpoint_of_a_project_sees_that_projects_tasks_alone(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    hooks.create(server.url("/theirs"), project="theirs")
    hooks.create(server.url("/all"))
    world.add("a", callback_url=server.url("/cb"))
    world.redis.hset("rq:job:a", "project", "theirs")
    world.finish(world.claim())
    world.end("b")

    async with supervisor(world):
        await until(lambda: len(server.at("/all")) == 2 and server.at("/theirs") and server.at("/cb"))

    assert [each.message["subject"] for each in server.at("/theirs")] == ["a"]
    (called_back,) = server.at("/cb")
    assert Verifier(hooks.get("callback", "theirs").secret).verify(called_back.body, called_back.headers)
    assert hooks.get("callback").secret != hooks.get("callback", "theirs").secret


async def test_a_result_that_is_too_large_is_left_out(world: World, hooks: Hooks, server: Receiver) -> None:
    hooks.create(server.url())
    running = world.start("a")
    world.run(scripts.finish(running, S.DONE, result=b'"' + b"x" * 17_000 + b'"'))

    async with supervisor(world):
        (sent,) = await received(server)

    assert "result" not in sent.message["data"]


async def test_an_unreadable_outbox_entry_delays_no_other(world: World, hooks: Hooks, server: Receiver) -> None:
    hooks.create(server.url())
    world.redis.xadd(keys.WEBHOOKS_OUTBOX, {"event": "{no"})
    world.redis.xadd(keys.WEBHOOKS_OUTBOX, {"else": "1"})
    world.end("a")

    async with supervisor(world):
        await received(server)

    assert world.redis.xlen(keys.WEBHOOKS_OUTBOX) == 0


# --- again ------------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_is_made_again_later_with_the_same_id_and_body(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url())
    server.answers = [(500, {}), (302, {"location": "/else"}), (204, {})]
    world.end("a")

    async with supervisor(world):
        for attempts in (1, 2):
            waits = await settled(hooks, webhook.id, "pending", attempts)
            last = waits.attempts[-1]
            seconds = ((waits.next_ms or 0) - last.at_ms) / 1000
            assert DELAYS_S[attempts - 1] <= seconds <= DELAYS_S[attempts - 1] * 1.2 + 20
            hooks.make_due()
        done = await settled(hooks, webhook.id, "delivered")

    assert [(each.outcome, each.status_code, each.error) for each in done.attempts] == [
        ("failed", 500, "answered 500"),
        ("failed", 302, "answered 302: redirects aren't followed"),
        ("delivered", 204, None),
    ]
    assert {(each.id, each.body) for each in server.requests} == {(done.id, done.body)}
    assert len({each.headers["webhook-signature"] for each in server.requests}) >= 1


async def test_a_waiting_delivery_goes_to_the_new_url_of_its_endpoint(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url("/old"))
    server.answers = [(500, {})]
    world.end("a")

    async with supervisor(world):
        await settled(hooks, webhook.id, "pending", 1)
        moved = WebhookFields(url=server.url("/new"))
        world.store.carry_out(webhook_store.update_webhook(webhook.id, moved, ALLOWED, ME))
        hooks.make_due()
        await settled(hooks, webhook.id, "delivered")

    assert [each.path for each in server.requests] == ["/old", "/new"]


def test_an_attempt_takes_15_seconds_at_most_its_lease_is_longer_and_all_of_them_take_days() -> None:
    assert ANSWER_S + BODY_S <= 15 < keys.DELIVERY_LEASE_MS / 1000
    assert 3 * 86_400 < sum(DELAYS_S) < 5 * 86_400
    assert AT_ONCE >= 5 * LANE_MOST


async def test_retry_after_is_honoured_and_capped(world: World, hooks: Hooks, server: Receiver) -> None:
    webhook = hooks.create(server.url())
    server.answers = [(429, {"retry-after": "4000"}), (503, {"retry-after": "99999999"})]
    world.end("a")

    async with supervisor(world):
        for attempts, asked_s in ((1, 4000), (2, 86_400)):
            waits = await settled(hooks, webhook.id, "pending", attempts)
            seconds = ((waits.next_ms or 0) - waits.attempts[-1].at_ms) / 1000
            assert asked_s <= seconds <= asked_s * 1.2 + 20
            hooks.make_due()
        await settled(hooks, webhook.id, "delivered")


async def test_after_its_last_attempt_a_delivery_is_dead_and_a_replay_brings_it_back(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url())
    server.answers = [(500, {})] * 3
    world.end("a")

    async with supervisor(world, delays_s=(0, 0)):
        dead = await settled(hooks, webhook.id, "dead")
        assert [each.outcome for each in dead.attempts] == ["failed", "failed", "dead"]
        assert [each.id for each in hooks.of(webhook.id, status=DeliveryStatus.DEAD)] == [dead.id]
        assert [each.id for each in hooks.of("")] == [dead.id]
        assert hooks.counted("dead") == 1

        world.store.carry_out(delivery.replay(dead.id))
        done = await settled(hooks, webhook.id, "delivered")

    assert (done.id, len(done.attempts)) == (dead.id, 4)
    assert hooks.of(webhook.id, status=DeliveryStatus.DEAD) == hooks.of("") == []
    with pytest.raises(DeliveryNotFound):
        world.store.carry_out(delivery.replay("msg_none"))


async def test_a_delivered_message_can_be_sent_again_by_hand(world: World, hooks: Hooks, server: Receiver) -> None:
    webhook = hooks.create(server.url())
    world.end("a")

    async with supervisor(world):
        done = await settled(hooks, webhook.id, "delivered")
        world.store.carry_out(delivery.replay(done.id))
        first, second = await received(server, 2)

    assert (first.id, first.body) == (second.id, second.body)


async def test_a_replay_of_a_delivery_that_is_due_changes_only_the_audit_log(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url())
    trial = world.store.carry_out(webhook_store.send_test(webhook.id, None))
    before = world.snapshot()
    by = Actor("k", "ann", None, "127.0.0.1")

    replayed = world.store.carry_out(delivery.replay(trial.id, by))
    untouched = world.since(before)
    world.run(delivery.take("one", lease_ms=0, limit=10, lane_most=8, failing_most=1))
    world.store.carry_out(delivery.replay(trial.id, by))

    assert (replayed, untouched) == (trial, {})
    audited, _created = world.store.carry_out(read_audit()).items
    assert (audited.entry.what, audited.entry.about, audited.entry.key) == ("delivery.replayed", trial.id, "k")


async def test_an_endpoint_that_answers_410_is_disabled(world: World, hooks: Hooks, server: Receiver) -> None:
    webhook = hooks.create(server.url())
    server.answers = [(410, {})]
    world.end("a")

    async with supervisor(world):
        dead = await settled(hooks, webhook.id, "dead")
        assert [each.status_code for each in dead.attempts] == [410]
        assert not hooks.get(webhook.id).enabled
        assert hooks.get(webhook.id).disabled_reason == "the endpoint answered 410 Gone"

        world.end("b")
        assert not world.redis.xlen(keys.WEBHOOKS_OUTBOX)

        world.store.carry_out(delivery.replay(dead.id))
        again = await settled(hooks, webhook.id, "dead", 2)

    assert again.attempts[-1].error == "the endpoint is disabled"
    assert len(server.requests) == 1


async def test_a_callback_that_answers_410_ends_only_that_delivery(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    server.answers = [(410, {})]
    world.end("a", callback_url=server.url())

    async with supervisor(world):
        await settled(hooks, "a", "dead")
        world.end("b", callback_url=server.url())
        await settled(hooks, "b", "delivered")


async def test_while_a_secret_rotates_both_verify_and_then_the_new_one_alone(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    old = hooks.create(server.url())
    new = world.store.carry_out(webhook_store.rotate_secret(old.id, ME, secret=None, overlap_s=60))
    world.end("a")

    async with supervisor(world):
        (both,) = await received(server)
        last = world.store.carry_out(webhook_store.rotate_secret(old.id, ME, secret=None, overlap_s=0))
        world.end("b")
        *_, one = await received(server, 2)

    for secret in (old.secret, new.secret):
        assert Verifier(secret).verify(both.body, both.headers)
    assert Verifier(last.secret).verify(one.body, one.headers)
    assert one.headers["webhook-signature"].count("v1,") == 1
    assert len({old.secret, new.secret, last.secret}) == 3


async def test_an_endpoint_that_was_removed_leaves_nothing_behind(world: World, hooks: Hooks, server: Receiver) -> None:
    webhook = hooks.create(server.url())
    server.answers = [(500, {})]
    world.end("a")
    async with supervisor(world):
        await settled(hooks, webhook.id, "pending", 1)

    world.store.carry_out(webhook_store.remove_webhook(webhook.id, ME))

    left = {key.decode() for key in world.redis.keys("taskpool:*") if b"webhooks" in key or b"deliver" in key}
    assert left <= {keys.DELIVERIES_OF_TASK + "a", keys.WEBHOOKS_OUTBOX, keys.WEBHOOKS_SORTER}
    assert hooks.of("a") == []
    with pytest.raises(WebhookNotFound):
        hooks.get(webhook.id)


# --- who hangs, who dies ----------------------------------------------------------------------------------------------


async def test_an_endpoint_that_hangs_delays_no_other(world: World, hooks: Hooks, server: Receiver) -> None:
    for number in range(3):
        hooks.create(server.url("/hang", host=f"127.0.0.{number + 1}"))
    hooks.create(server.url("/quick"), queues=["quick"])
    for number in range(60):
        world.end(f"slow{number}")
    async with supervisor(world):
        await until(lambda: server.hanging >= 8)
        for number in range(20):
            world.end(f"t{number}", queue="quick")

        await until(lambda: len(server.at("/quick")) == 20)

        assert server.hanging <= 3 * LANE_MOST
        server.release.set()


async def test_a_lane_that_failed_is_tried_one_at_a_time(world: World, hooks: Hooks, server: Receiver) -> None:
    webhook = hooks.create(server.url("/hang"))
    world.redis.set(keys.WEBHOOKS_FAILING + webhook.id, "1")
    for number in range(5):
        world.end(f"t{number}")

    async with supervisor(world):
        await until(lambda: server.hanging == 1)
        hooks.create(server.url("/next"))
        world.end("next")
        await until(lambda: server.at("/next"))

        assert server.hanging == 1
        server.release.set()


async def test_another_supervisor_sends_what_a_dead_one_was_sending_with_the_same_id(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url("/hang"))
    world.end("a")
    nowhere = AsyncStore("unix:///nowhere")
    async with supervisor(world, "first") as first:
        await until(lambda: server.hanging == 1)
        first._store = nowhere  # it can't tell anybody any more

    with pytest.raises(DeliveryBusy):
        world.store.carry_out(delivery.replay(hooks.of(webhook.id)[0].id))
    taking = delivery.take("x", lease_ms=30_000, limit=10, lane_most=8, failing_most=1)
    assert world.run(taking)[1] == []
    hooks.end_leases()
    async with supervisor(world, "second"):
        await until(lambda: server.hanging == 2)
        server.release.set()

    first_one, second_one = server.requests
    assert (first_one.id, first_one.body) == (second_one.id, second_one.body)


async def test_a_supervisor_that_ends_gives_back_what_it_was_sending(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url("/hang"))
    world.end("a")

    async with supervisor(world):
        await until(lambda: server.hanging == 1)

    (waits,) = hooks.of(webhook.id)
    assert (waits.status, waits.attempts) == ("pending", ())
    assert waits.next_ms is not None
    assert world.redis.hget(keys.DELIVERY + waits.id, "attempts") == b"0"


async def test_a_supervisor_that_ends_lets_an_attempt_end_in_its_grace(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url("/hang"))
    world.end("a")
    async with supervisor(world) as dispatcher:
        await until(lambda: server.hanging == 1)
        closing = asyncio.create_task(dispatcher.close(30))
        world.end("b")
        server.release.set()
        await closing

    (waits,) = [each for each in hooks.of(webhook.id) if each.task == "a"]  # the last round may have found b
    assert [each.error for each in waits.attempts] == ["no answer: the connection was closed"]
    assert len(server.requests) == 1


async def test_a_supervisor_that_lost_the_lease_of_a_delivery_changes_nothing(
    world: World, hooks: Hooks, server: Receiver
) -> None:
    webhook = hooks.create(server.url())
    world.store.carry_out(webhook_store.send_test(webhook.id, None))

    def take(token: str) -> list[delivery.Taken]:
        return world.run(delivery.take(token, lease_ms=30_000, limit=10, lane_most=8, failing_most=1))[1]

    (first,) = take("one")
    hooks.end_leases()
    (second,) = take("two")
    before = world.snapshot()

    assert (first.id, first.attempt, second.id, second.attempt) == (first.id, 1, first.id, 2)
    assert world.run(delivery.settle(first.id, "one", "delivered")) == "lost"
    assert world.since(before) == {}
    assert world.run(delivery.settle(first.id, "two", "delivered")) == "ok"


async def test_two_supervisors_make_each_delivery_once(world: World, hooks: Hooks, server: Receiver) -> None:
    hooks.create(server.url())
    for number in range(150):
        world.end(f"t{number}")

    async with supervisor(world, "one"), supervisor(world, "two"):
        await until(lambda: hooks.counted("delivered") == 150)

    assert len(server.requests) == len({each.id for each in server.requests}) == 150


async def test_an_attempt_that_ends_while_redis_refuses_writes_is_settled_later_and_not_made_again(
    world: World, hooks: Hooks, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = hooks.create(server.url("/hang"))
    world.end("a")
    tries: list[str] = []
    settle = delivery.settle

    def counted(id: str, *arguments: Any, **options: Any) -> Any:
        tries.append(id)
        return settle(id, *arguments, **options)

    monkeypatch.setattr(delivery, "settle", counted)
    try:
        async with supervisor(world):
            await until(lambda: server.hanging == 1)
            world.redis.config_set("min-replicas-to-write", 1)
            server.release.set()
            await until(lambda: len(tries) >= 2)
            world.redis.config_set("min-replicas-to-write", 0)
            await settled(hooks, webhook.id, "pending", attempts=1)
    finally:
        world.redis.config_set("min-replicas-to-write", 0)

    assert len(server.requests) == 1


async def test_a_fault_of_ours_is_an_attempt_that_failed(
    world: World, hooks: Hooks, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Sender, "send", break_down)
    webhook = hooks.create(server.url())
    world.end("a")

    async with supervisor(world):
        waits = await settled(hooks, webhook.id, "pending", 1)

    assert waits.attempts[0].error == "a fault of ours: the log of the workers says more"


def test_a_full_lane_drops_what_comes_and_counts_it(world: World, hooks: Hooks, server: Receiver) -> None:
    fill = "for n = 1, ARGV[1] do redis.call('ZADD', KEYS[1], n, n) end"
    webhook = hooks.create(server.url())
    world.redis.eval(fill, 1, keys.WEBHOOKS_WAITING + webhook.id, keys.WEBHOOKS_LANE_MAX)

    with pytest.raises(WebhookConflict, match="so many messages wait"):
        world.store.carry_out(webhook_store.send_test(webhook.id, None))

    assert hooks.counted("dropped") == 1
    assert hooks.of(webhook.id) == []


def test_the_outbox_is_left_to_one_supervisor_unless_the_clock_was_set_back(world: World, hooks: Hooks) -> None:
    hooks.create("http://127.0.0.1:9/")
    world.end("a")

    def entries(supervisor: str) -> int:
        return len(world.run(outbox_page(supervisor, hold_ms=2000, limit=10)).entries)

    assert (entries("one"), entries("two")) == (1, 0)
    world.redis.pexpire(keys.WEBHOOKS_SORTER, 600_000)  # as after a step back by ten minutes
    assert entries("two") == 1
