"""Sends one webhook through the guard of targets, reads a little of the answer, and is over in 15 seconds whatever the
other side does.

Sends webhooks: turns events of the outbox into deliveries, takes those that are due, sends them, settles them.

Every pool does it, without a leader: a delivery is taken with a lease. One that is being sent when its supervisor dies
is sent again, with the same id, when the lease has ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from taskpool.errors import RedisUnavailable
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, one
from taskpool.text import own_version
from taskpool.url_guard import Allowed, NotSent, Resolve, Resolver, Target, parse_target, system_tls
from taskpool.webhooks import delivery
from taskpool.webhooks.delivery import NewDelivery, Outcome, SendAttempt, Taken
from taskpool.webhooks.endpoint import Webhook, signed_headers
from taskpool.webhooks.message import MOST_RESULT_BYTES, TYPE_PREFIX, OutboxEntry, is_wanted, message_body
from taskpool.webhooks.store import callback_key, callback_webhook, disable_webhook

if TYPE_CHECKING:
    import httpcore


ANSWER_S: Final = 14.0
BODY_S: Final = 1.0
"""An attempt takes at most 15 seconds: to the status, and then for what else is sent."""
CONNECT_S: Final = 5.0
"""One address may take so long: the next one has its chance."""
MOST_BODY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint answered: its status, and how many seconds it asked to be left alone."""

    status_code: int
    retry_after_s: float | None = None


class Sender:
    """Sends webhooks. `resolve` gives a host's addresses; `tls` says whose certificates are trusted."""

    def __init__(
        self,
        allowed: Allowed,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._allowed, self._tls, self._answer_s = allowed, tls, answer_s
        self._resolve = resolve or Resolver().resolve

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST the body.

        Raises:
            NotSent: the URL or an address isn't allowed, or there was no answer in time.
        """
        if self._tls is None:  # the import and the certificates take longer than the loop should stand still
            self._tls = await asyncio.to_thread(system_tls)
        from taskpool import url_guard

        async with AsyncExitStack() as opened:
            try:
                async with asyncio.timeout(self._answer_s):
                    target = parse_target(url, self._allowed)
                    response = await url_guard.send(
                        "POST", target, _headers(target, headers, body), body, allowed=self._allowed,
                        resolve=self._resolve, tls=self._tls, connect_s=CONNECT_S, opened=opened,
                    )  # fmt: skip
            except TimeoutError:
                raise NotSent(f"no answer within {self._answer_s:g} s") from None
            except ValueError as fault:
                raise NotSent(f"not allowed: {fault}") from None
            await _read_a_little(response)
        said = {name.lower(): value for name, value in response.headers}
        return Answer(response.status, _retry_after_s(said.get(b"retry-after")))


def _headers(target: Target, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
    told = {
        "host": target.authority,
        "user-agent": f"taskpool/{own_version()}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept-encoding": "identity",
        "connection": "close",
        **headers,
    }
    return [(name.encode(), value.encode()) for name, value in told.items()]


async def _read_a_little(response: httpcore.Response) -> None:
    """Some servers call it an error when nobody reads their answer. What it says isn't kept: the status decides."""
    import httpcore

    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > MOST_BODY_BYTES:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        pass


def _retry_after_s(header: bytes | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None when it says nothing."""
    if header is None:
        return None
    text = header.decode("latin-1")
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


log = logging.getLogger("workers")

DELAYS_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The waits after failed attempts, as Standard Webhooks has them; after the tenth attempt a delivery is dead."""
JITTER: Final = 0.2
MOST_RETRY_AFTER_S: Final = 86_400
AT_ONCE: Final = 100
LANE_MOST: Final = 16
FAILING_MOST: Final = 1
SORTED_AT_ONCE: Final = 100
HOLD_MS: Final = 2000
LOOK_S: Final = 0.5
TELL_AGAIN_S: Final = 0.5
GONE: Final = 410


class Dispatcher:
    """One duty. `wake` cuts its waits short."""

    def __init__(
        self,
        store: AsyncStore,
        supervisor: str,
        allowed: Allowed,
        *,
        sender: Sender | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        lease_ms: int = keys.DELIVERY_LEASE_MS,
    ) -> None:
        self._store, self._supervisor, self._allowed = store, supervisor, allowed
        self._sender = sender or Sender(allowed)
        self._delays_s, self._lease_ms = delays_s, lease_ms
        self._under_way: set[asyncio.Task[None]] = set()
        self._draining = False
        self.wake = asyncio.Event()

    async def step(self) -> float:
        """One round; the seconds until the next.

        Raises:
            RedisUnavailable: Redis is away.
        """
        if self._draining:
            return LOOK_S
        sorted_all = await self._sort_outbox()
        wait_s = await self._take_due()
        return 0.0 if not sorted_all else wait_s

    def drain(self) -> None:
        """Takes no more deliveries; what is being sent goes on."""
        self._draining = True

    async def close(self, grace_s: float) -> None:
        """Waits so long for what is being sent; what is left then is given back, to be sent again with the same id."""
        self.drain()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=grace_s)
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    # --- from the outbox to deliveries --------------------------------------------------------------------------------

    async def _sort_outbox(self) -> bool:
        """Turns the oldest events into deliveries; False when there are more."""
        page = await self._store.run(delivery.outbox_page(self._supervisor, hold_ms=HOLD_MS, limit=SORTED_AT_ONCE))
        wanted = [(entry, [each for each in page.webhooks if is_wanted(entry, each)]) for entry in page.entries]
        told = [entry for entry, endpoints in wanted if endpoints or entry.callback_url]
        bodies = dict(zip([entry.id for entry in told], await self._bodies(told), strict=True))
        for project in {entry.project for entry in told if entry.callback_url}:
            await self._store.carry_out(callback_webhook(project))
        calls = [
            delivery.deliver(entry.id, self._deliveries(entry, endpoints, bodies.get(entry.id, b"")))
            for entry, endpoints in wanted
        ]
        for id in page.unreadable:
            log.error("webhooks: the entry %s of the outbox can't be read; it is dropped", id)
            calls.append(delivery.deliver(id, []))
        if calls:
            await self._store.run_many(calls)
        return len(calls) < SORTED_AT_ONCE

    async def _bodies(self, entries: Sequence[OutboxEntry]) -> list[bytes]:
        """Each event's message. Results are in the tasks' records, if they still are there."""
        done = [entry for entry in entries if entry.event["event"] == "done"]
        sizes = await self._store.run_many([_job("HSTRLEN", entry) for entry in done]) if done else []
        small = [entry for entry, size in zip(done, sizes, strict=True) if 0 < size <= MOST_RESULT_BYTES]
        found = await self._store.run_many([_job("HGET", entry) for entry in small]) if small else []
        results = dict(zip([entry.id for entry in small], found, strict=True))
        return [message_body(entry, results.get(entry.id)) for entry in entries]

    def _deliveries(self, entry: OutboxEntry, endpoints: Sequence[Webhook], body: bytes) -> Sequence[NewDelivery]:
        event = TYPE_PREFIX + entry.event["event"]
        made = [
            NewDelivery(_id(entry, each.id), each.id, each.id, entry.task, event, each.url, body) for each in endpoints
        ]
        if entry.callback_url:
            key = callback_key(entry.project)
            try:
                lane = f"{key}:{parse_target(entry.callback_url, self._allowed).authority}"
            except ValueError:  # it was allowed when the task was submitted
                lane = key
            made.append(NewDelivery(_id(entry, "callback"), lane, key, entry.task, event, entry.callback_url, body))
        return made

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _take_due(self) -> float:
        """Starts to send what is due; the seconds until there may be more."""
        room = AT_ONCE - len(self._under_way)
        if room <= 0:
            return LOOK_S
        token = f"{self._supervisor}:{secrets.token_hex(6)}"
        wait_ms, taken = await self._store.run(
            delivery.take(token, lease_ms=self._lease_ms, limit=room, lane_most=LANE_MOST, failing_most=FAILING_MOST)
        )
        for each in taken:
            task = asyncio.create_task(self._send(each, token))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        return LOOK_S if wait_ms is None else min(LOOK_S, wait_ms / 1000)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook can't be sent; it is tried again when its lease ends", exc_info=error)

    async def _send(self, taken: Taken, token: str) -> None:
        """One attempt, from its request to what Redis is told of it."""
        started = time.monotonic()
        answer: Answer | None = None
        try:
            answer, outcome, error = await self._attempt(taken)
        except NotSent as fault:
            outcome, error = self._failed(taken), str(fault)
        except asyncio.CancelledError:
            await self._tell(lambda: one(delivery.settle(taken.id, token, "given_back")), insists=False)
            raise
        except Exception:  # the outermost loop of a delivery: without this it would come back with each end of a lease
            log.exception("the webhook %s can't be sent", taken.id)
            outcome, error = self._failed(taken), "a fault of ours: the log of the workers says more"
        spent_ms = round((time.monotonic() - started) * 1000)
        code = answer.status_code if answer else None
        if code == GONE and taken.endpoint is not None and taken.endpoint.url:
            log.warning("the webhook %s answered 410: it is disabled", taken.webhook)
            await self._tell(lambda: disable_webhook(taken.webhook, "the endpoint answered 410 Gone"))
        attempt = SendAttempt(taken.taken_ms, spent_ms, outcome, code, error)
        delay_ms = self._delay_ms(taken, answer) if outcome == "failed" else 0
        await self._tell(lambda: one(delivery.settle(taken.id, token, outcome, delay_ms=delay_ms, attempt=attempt)))

    async def _attempt(self, taken: Taken) -> tuple[Answer | None, Outcome, str | None]:
        """What was answered, how the attempt ended, and what went wrong. Raises NotSent."""
        if taken.endpoint is None:
            return None, "dead", "the endpoint was removed"
        if not taken.endpoint.enabled:
            return None, "dead", "the endpoint is disabled"
        keys = taken.endpoint.keys(taken.taken_ms)
        headers = signed_headers(taken.id, taken.taken_ms // 1000, taken.body, keys)
        answer = await self._sender.send(taken.endpoint.url or taken.url, headers, taken.body)
        return answer, *self._judge(taken, answer)

    def _judge(self, taken: Taken, answer: Answer) -> tuple[Outcome, str | None]:
        if 200 <= answer.status_code < 300:
            return "delivered", None
        if answer.status_code == GONE:
            return "dead", "answered 410: it wants no more messages"
        if 300 <= answer.status_code < 400:
            return self._failed(taken), f"answered {answer.status_code}: redirects aren't followed"
        return self._failed(taken), f"answered {answer.status_code}"

    def _failed(self, taken: Taken) -> Outcome:
        return "failed" if taken.attempt <= len(self._delays_s) else "dead"

    def _delay_ms(self, taken: Taken, answer: Answer | None) -> int:
        """Until the next attempt: as scheduled, or longer when the endpoint asked for it, and then a little more."""
        delay_s = self._delays_s[taken.attempt - 1]
        if answer is not None and answer.retry_after_s is not None:
            delay_s = max(delay_s, min(answer.retry_after_s, MOST_RETRY_AFTER_S))
        return round(delay_s * 1000 * (1 + random.random() * JITTER))

    async def _tell(self, plan: Callable[[], Plan[Any]], *, insists: bool = True) -> None:
        """Tells Redis how an attempt ended; with `insists` again and again until its lease has ended."""
        until = time.monotonic() + (self._lease_ms / 1000 if insists else 0)
        while True:
            try:
                await self._store.carry_out(plan())
                return
            except RedisUnavailable as error:
                if time.monotonic() >= until:
                    log.warning("a webhook's attempt can't be settled, so it may be sent again: %s", error)
                    return
            await asyncio.sleep(TELL_AGAIN_S)


def _id(entry: OutboxEntry, endpoint: str) -> str:
    """The id of the message to an endpoint about an event: the same whoever makes it, and in the order of events."""
    ms, _, number = entry.id.partition("-")
    return f"msg_{int(ms):013d}{int(number):06d}_{endpoint}"


def _job(command: str, entry: OutboxEntry) -> Call[Any]:
    return Call((command, keys.JOB + entry.task, "result"), lambda reply: reply, again=True)
