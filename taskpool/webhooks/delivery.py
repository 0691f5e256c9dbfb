"""Deliveries: one message to one endpoint, from the outbox to its end.

A message is delivered at least once: a delivery is taken with a lease and comes back when the lease ends. Its id, which
receivers see as `webhook-id`, is made of the event and the endpoint, so it is the same at each attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from taskpool.access.audit import Actor, entry
from taskpool.errors import DeliveryBusy, DeliveryNotFound
from taskpool.redis import calls, keys
from taskpool.redis.calls import Call, Plan, Script, hash_of, one, texts, tolerant
from taskpool.types import Page
from taskpool.validation import Field
from taskpool.webhooks.endpoint import DeliveryStatus, OutboxEntry, Webhook, is_callback, read_entry

Outcome = Literal["delivered", "failed", "dead", "given_back"]

LONGEST_PAGE: Final = 200

_page, _deliver = Script("outbox_page"), Script("deliver")
_send, _sent, _replay = Script("send"), Script("sent"), Script("replay")
_attempts = msgspec.json.Decoder().decode_lines
_webhook = msgspec.json.Decoder(Webhook).decode


class NewDelivery(msgspec.Struct, frozen=True, gc=False):
    """A message that is to be sent. `lane` is what it must not starve: its endpoint, or a callback's host."""

    id: str
    lane: str
    webhook: str
    task: str
    event: str
    url: str
    body: bytes


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A delivery that was taken to be sent. `endpoint` is None if it was removed. `attempt` counts from 1. Times are
    Redis's."""

    id: str
    endpoint: Webhook | None
    webhook: str
    url: str
    body: bytes
    attempt: int
    taken_ms: int


class SendAttempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one attempt to send went. Times and durations in ms."""

    at_ms: int
    duration_ms: Annotated[int, Field(least=0)]
    outcome: str
    status_code: Annotated[int | None, Field("The status of the response, if there was one.")] = None
    error: Annotated[str | None, Field("What went wrong; only for callers who may see the URL.")] = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as stored. `next_ms`: when it is tried next, if it waits."""

    id: str
    webhook: str
    task: str | None
    event: Annotated[str, Field(examples=["taskpool.task.done"])]
    url: str
    status: DeliveryStatus
    attempts: tuple[SendAttempt, ...]
    created_ms: int
    next_ms: Annotated[int | None, Field("When it is tried next; absent while it is being sent.")] = None
    body: bytes = b""
    lane: str = ""

    @property
    def is_callback(self) -> bool:
        """Whether it goes to its task's own callback."""
        return is_callback(self.webhook)


# --- what supervisors ask ---------------------------------------------------------------------------------------------


class OutboxPage(NamedTuple):
    """The oldest events of the outbox, and all endpoints. `unreadable` are entries that aren't events."""

    webhooks: Sequence[Webhook] = ()
    entries: Sequence[OutboxEntry] = ()
    unreadable: Sequence[str] = ()


def outbox_page(supervisor: str, *, hold_ms: int, limit: int) -> Call[OutboxPage]:
    """The oldest events of the outbox; nothing while another supervisor is at it."""

    def read(reply: list[Any]) -> OutboxPage:
        if not reply:
            return OutboxPage()
        found = {id.decode(): read_entry(id.decode(), flat) for id, flat in reply[1]}
        return OutboxPage(
            list(calls.readable(enumerate(reply[0]), _webhook, "endpoint of webhooks").values()),
            [entry for entry in found.values() if entry is not None],
            [id for id, entry in found.items() if entry is None],
        )

    return _page.call((supervisor, hold_ms, limit), read)


def deliver(entry: str, deliveries: Sequence[NewDelivery]) -> Call[str]:
    """Turn one event of the outbox into these deliveries: ``ok``, or ``gone``: it has been. `entry` may be empty."""
    return _deliver.word(entry, *[part for each in deliveries for part in msgspec.structs.astuple(each)])


def take(
    token: str, *, lease_ms: int, limit: int, lane_most: int, failing_most: int
) -> Call[tuple[int | None, list[Taken]]]:
    """Take due deliveries, to send them: in how many ms there may be more (None: nothing waits), and what was taken."""

    def read(reply: list[Any]) -> tuple[int | None, list[Taken]]:
        now_ms, wait_ms, *rows = reply
        taken = []
        for id, endpoint, webhook, _task, _event, url, body, attempt, _created_ms in rows:
            known = _webhook(endpoint) if endpoint else None
            taken.append(Taken(id.decode(), known, webhook.decode(), url.decode(), body, attempt, now_ms))
        return (None if wait_ms < 0 else wait_ms), taken

    return _send.call((token, lease_ms, limit, lane_most, failing_most), read, again=False)


def settle(
    id: str, token: str, outcome: Outcome, *, delay_ms: int = 0, attempt: SendAttempt | None = None
) -> Call[str]:
    """End an attempt: ``ok`` or ``lost``."""
    return _sent.word(id, token, outcome, delay_ms, b"" if attempt is None else msgspec.json.encode(attempt))


def outbox_length() -> Call[int]:
    """How many events wait to become deliveries."""
    return tolerant(Call(("XLEN", keys.WEBHOOKS_OUTBOX), int, again=True), 0)


# --- what readers ask -------------------------------------------------------------------------------------------------


def get_delivery(id: str) -> Plan[Delivery]:
    """One delivery, body and all. Raises: DeliveryNotFound."""
    (found,) = yield from _read([id])
    if found is None:
        raise DeliveryNotFound(id)
    return found


def list_deliveries(
    *,
    webhook: str = "",
    task: str = "",
    status: DeliveryStatus | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Plan[Page[Delivery]]:
    """The deliveries to an endpoint or about a task that are still known, or of neither the dead ones of all; the
    newest first. A page may be short. Raises: InvalidTask (the cursor isn't one of ours)."""
    limit = calls.page_length(limit, LONGEST_PAGE)
    end = f"({calls.decode_cursor(cursor, (str,))[0]}" if cursor else "+"
    if webhook:
        key = (keys.DELIVERIES_DEAD if status is DeliveryStatus.DEAD else keys.DELIVERIES) + webhook
    else:
        key = keys.DELIVERIES_OF_TASK + task if task else keys.DELIVERIES_ALL_DEAD
    command = ("ZREVRANGEBYLEX", key, end, "-", "LIMIT", 0, limit)
    ids = yield from one(tolerant(Call(command, texts, again=True), []))
    found = (yield from _read(ids)) if ids else []
    items = tuple(each for each in found if each is not None and status in (None, each.status))
    return Page(items, calls.encode_cursor(ids[-1]) if len(ids) == limit else None)


def replay(id: str, by: Actor | None = None) -> Plan[Delivery]:
    """Send a delivery again, or at once: it as it is then. Raises: DeliveryNotFound, DeliveryBusy (it is being sent at
    this moment)."""
    word = yield from one(_replay.word(id, entry(by, "delivery.replayed", id)))
    if word == "gone":
        raise DeliveryNotFound(id)
    if word == "sending":
        raise DeliveryBusy(id)
    return (yield from get_delivery(id))


def _read(ids: Sequence[str]) -> Plan[list[Delivery | None]]:
    found = yield [_fetch(id) for id in ids]
    pending = [each for each in found if each is not None and each.status is DeliveryStatus.PENDING]
    times = (yield [_due_ms(each) for each in pending]) if pending else []
    due = dict(zip([each.id for each in pending], times, strict=True))
    return [each and msgspec.structs.replace(each, next_ms=due.get(each.id)) for each in found]


def _fetch(id: str) -> Call[Delivery | None]:
    def read(reply: list[bytes]) -> Delivery | None:
        h = hash_of(reply)
        if b"lane" not in h:
            return None
        texts = {name.decode(): value.decode() for name, value in h.items() if name != b"body"}
        others = {
            "id": id,
            "task": texts["task"] or None,
            "attempts": _attempts(h.get(b"log", b"")),
            "body": h[b"body"],
        }
        return msgspec.convert(texts | others, Delivery, strict=False)

    return tolerant(Call(("HGETALL", keys.DELIVERY + id), read, again=True), None)


def _due_ms(delivery: Delivery) -> Call[int | None]:
    def read(score: bytes | None) -> int | None:
        return None if score is None else round(float(score))

    return tolerant(Call(("ZSCORE", keys.WEBHOOKS_WAITING + delivery.lane, delivery.id), read, again=True), None)
