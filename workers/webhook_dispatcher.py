"""Sends webhooks: turns events of the outbox into deliveries, claims those that are due, sends them, and records how
that went. Every pool does it, without a leader. A delivery is claimed with a lease: when its supervisor dies, it is
sent again, with the same id, when the lease has ended.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskpool import url_guard
from taskpool.errors import RedisUnavailable
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, one
from taskpool.text import own_version, seconds_until
from taskpool.url_guard import Allowed, NotSent, Resolve, Resolver, parse_target, system_tls
from taskpool.webhooks import delivery
from taskpool.webhooks.delivery import NewDelivery, Outcome, SendAttempt, Taken
from taskpool.webhooks.endpoint import (
    MOST_RESULT_BYTES,
    OutboxEntry,
    Webhook,
    is_wanted,
    message_body,
    message_type,
    signed_headers,
)
from taskpool.webhooks.store import callback_key, callback_webhook, disable_webhook

from .duties import BackgroundTasks, Outage, insist, log

if TYPE_CHECKING:
    import httpcore

# --- one request ------------------------------------------------------------------------------------------------------

ANSWER_S: Final = 14.0
BODY_S: Final = 1.0
"""An attempt takes 15 seconds at most: until the status, and then for the body."""
CONNECT_S: Final = 5.0
"""For one address of a host; then the next one is tried."""
MOST_BODY_BYTES: Final = 64 * 1024
GONE: Final = 410


class Answer(NamedTuple):
    """The endpoint's response: its status, and the seconds of its Retry-After header."""

    status_code: int
    retry_after_s: float | None = None


class Sender:
    """Sends requests to allowed addresses. `resolve` gives a host's addresses, `tls` the trusted certificates."""

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
        """Sends the body with a POST. Raises: NotSent, if an address isn't allowed or doesn't answer in time."""
        if self._tls is None:  # the import and the certificates would block the loop for too long
            self._tls = await asyncio.to_thread(system_tls)
        async with AsyncExitStack() as opened:
            try:
                async with asyncio.timeout(self._answer_s):
                    target = parse_target(url, self._allowed)
                    all_headers = {
                        "host": target.authority,
                        "user-agent": f"taskpool/{own_version()}",
                        "content-type": "application/json",
                        "content-length": str(len(body)),
                        "accept-encoding": "identity",
                        "connection": "close",
                        **headers,
                    }
                    pairs = [(name.encode(), value.encode()) for name, value in all_headers.items()]
                    response = await url_guard.send(
                        "POST", target, pairs, body, allowed=self._allowed,
                        resolve=self._resolve, tls=self._tls, connect_s=CONNECT_S, opened=opened,
                    )  # fmt: skip
            except TimeoutError:
                raise NotSent(f"no answer within {self._answer_s:g} s") from None
            except ValueError as fault:
                raise NotSent(f"not allowed: {fault}") from None
            await _read_body(response)
        retry_after = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
        return Answer(response.status, seconds_until(retry_after.decode("latin-1")))


async def _read_body(response: httpcore.Response) -> None:
    """Reads some of the body, since some servers log an error if the client doesn't. It isn't kept."""
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


# --- deliveries -------------------------------------------------------------------------------------------------------

DELAYS_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The waits after failed attempts, as in Standard Webhooks; after the tenth attempt a delivery is dead."""
JITTER: Final = 0.2
MOST_RETRY_AFTER_S: Final = 86_400
AT_ONCE: Final = 100
LANE_MOST: Final = 16
FAILING_MOST: Final = 1
SORTED_AT_ONCE: Final = 100
HOLD_MS: Final = 2000
LOOK_S: Final = 0.5
SELDOM_S: Final = 2.0
"""How often a pool looks that has nothing to send: the one with the turn (see housekeeping.py), and the others. These
join in when there is more than one of them can send."""


class Dispatcher:
    """One duty. `wake` cuts its waits short. `is_mine`: whether this pool has the housekeeping."""

    def __init__(
        self,
        store: AsyncStore,
        supervisor: str,
        allowed: Allowed,
        *,
        outage: Outage | None = None,
        sender: Sender | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        lease_ms: int = keys.DELIVERY_LEASE_MS,
        is_mine: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_mine = is_mine
        self._store, self._supervisor, self._allowed = store, supervisor, allowed
        self._sender, self._outage = sender or Sender(allowed), outage or Outage()
        self._delays_s, self._lease_ms = delays_s, lease_ms
        self._sending = BackgroundTasks()
        self._draining = False
        self.wake = asyncio.Event()

    async def step(self) -> float:
        """One round; the seconds until the next. Raises: RedisUnavailable."""
        if self._draining:
            return LOOK_S
        sorted_all = await self._sort_outbox()
        wait_s = await self._send_due()
        return wait_s if sorted_all else 0.0

    def drain(self) -> None:
        """Claims no more deliveries; requests that were started go on."""
        self._draining = True

    async def close(self, grace_s: float) -> None:
        """Waits for the requests; those that take longer than `grace_s` are given back, to be sent again with the same
        id."""
        self.drain()
        if self._sending.running:
            await asyncio.wait(self._sending.running, timeout=grace_s)
        self._sending.cancel()
        if self._sending.running:
            await asyncio.wait(self._sending.running)

    # --- from the outbox to deliveries --------------------------------------------------------------------------------

    async def _sort_outbox(self) -> bool:
        """Turns the oldest events into deliveries; False: there are more."""
        page = await self._store.run(delivery.outbox_page(self._supervisor, hold_ms=HOLD_MS, limit=SORTED_AT_ONCE))
        wanted = {entry.id: [each for each in page.webhooks if is_wanted(entry, each)] for entry in page.entries}
        sent = [entry for entry in page.entries if wanted[entry.id] or entry.callback_url]
        bodies = await self._bodies(sent)
        for project in {entry.project for entry in sent if entry.callback_url}:
            await self._store.carry_out(callback_webhook(project))
        calls = [
            delivery.deliver(entry.id, self._deliveries(entry, wanted[entry.id], bodies.get(entry.id, b"")))
            for entry in page.entries
        ]
        for id in page.unreadable:
            log.error("webhooks: the entry %s of the outbox can't be read; it is dropped", id)
            calls.append(delivery.deliver(id, []))
        if calls:
            await self._store.run_many(calls)
        return len(calls) < SORTED_AT_ONCE

    async def _bodies(self, entries: Sequence[OutboxEntry]) -> dict[str, bytes]:
        """Each event's message, by entry. Results are in the tasks' records, if those still exist."""
        done = [entry for entry in entries if entry.event["event"] == "done"]
        sizes = await self._store.run_many([_result("HSTRLEN", entry) for entry in done]) if done else []
        small = [entry for entry, size in zip(done, sizes, strict=True) if 0 < size <= MOST_RESULT_BYTES]
        found = await self._store.run_many([_result("HGET", entry) for entry in small]) if small else []
        results = {entry.id: result for entry, result in zip(small, found, strict=True)}
        return {entry.id: message_body(entry, results.get(entry.id)) for entry in entries}

    def _deliveries(self, entry: OutboxEntry, endpoints: Sequence[Webhook], body: bytes) -> Sequence[NewDelivery]:
        event = message_type(entry.event["event"])
        made = [
            NewDelivery(_message_id(entry, each.id), each.id, each.id, entry.task, event, each.url, body)
            for each in endpoints
        ]
        if url := entry.callback_url:
            key = lane = callback_key(entry.project)
            try:
                lane = f"{key}:{parse_target(url, self._allowed).authority}"
            except ValueError:  # it was allowed when the task was submitted
                pass
            made.append(NewDelivery(_message_id(entry, "callback"), lane, key, entry.task, event, url, body))
        return made

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send_due(self) -> float:
        """Claims deliveries that are due and starts to send them; the seconds until there may be more."""
        room = 0 if self._draining else AT_ONCE - len(self._sending.running)
        if room <= 0:
            return LOOK_S
        token = f"{self._supervisor}:{secrets.token_hex(6)}"
        wait_ms, taken = await self._store.run(
            delivery.take(token, lease_ms=self._lease_ms, limit=room, lane_most=LANE_MOST, failing_most=FAILING_MOST)
        )
        for each in taken:
            self._sending.spawn(self._send(each, token)).add_done_callback(self._on_sent)
        look_s = LOOK_S if self._is_mine() or self._sending.running else SELDOM_S
        return look_s if wait_ms is None else min(look_s, wait_ms / 1000)

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook can't be sent; it is tried again when its lease ends", exc_info=error)

    async def _send(self, taken: Taken, token: str) -> None:
        """One attempt, from the request to its record in Redis."""
        started, answer = time.monotonic(), None
        try:
            answer, outcome, error = await self._attempt(taken)
        except NotSent as fault:
            outcome, error = self._failed(taken), str(fault)
        except asyncio.CancelledError:
            with suppress(RedisUnavailable):  # then its lease ends
                await self._store.run(delivery.settle(taken.id, token, "given_back"))
            raise
        except Exception:  # a fault of ours: without this, the delivery would be tried for ever
            log.exception("the webhook %s can't be sent", taken.id)
            outcome, error = self._failed(taken), "a fault of ours: the log of the workers says more"
        spent_ms = round((time.monotonic() - started) * 1000)
        code = answer.status_code if answer else None
        if code == GONE and taken.endpoint is not None and taken.endpoint.url:
            log.warning("the webhook %s answered 410: it is disabled", taken.webhook)
            await self._record(lambda: disable_webhook(taken.webhook, "the endpoint answered 410 Gone"))
        attempt = SendAttempt(taken.taken_ms, spent_ms, outcome, code, error)
        delay_ms = self._delay_ms(taken, answer) if outcome == "failed" else 0
        await self._record(lambda: one(delivery.settle(taken.id, token, outcome, delay_ms=delay_ms, attempt=attempt)))

    async def _attempt(self, taken: Taken) -> tuple[Answer | None, Outcome, str | None]:
        """Returns the answer, the outcome and the error. Raises NotSent."""
        if taken.endpoint is None:
            return None, "dead", "the endpoint was removed"
        if not taken.endpoint.enabled:
            return None, "dead", "the endpoint is disabled"
        keys = taken.endpoint.keys(taken.taken_ms)
        headers = signed_headers(taken.id, taken.taken_ms // 1000, taken.body, keys)
        answer = await self._sender.send(taken.endpoint.url or taken.url, headers, taken.body)
        status = answer.status_code
        if 200 <= status < 300:
            return answer, "delivered", None
        if status == GONE:
            return answer, "dead", "answered 410: it wants no more messages"
        redirect = ": redirects aren't followed" if 300 <= status < 400 else ""
        return answer, self._failed(taken), f"answered {status}{redirect}"

    def _failed(self, taken: Taken) -> Outcome:
        return "failed" if taken.attempt <= len(self._delays_s) else "dead"

    def _delay_ms(self, taken: Taken, answer: Answer | None) -> int:
        """The wait until the next attempt: as scheduled, or longer if the endpoint asked for it, and with jitter."""
        delay_s = self._delays_s[taken.attempt - 1]
        if answer is not None and answer.retry_after_s is not None:
            delay_s = max(delay_s, min(answer.retry_after_s, MOST_RETRY_AFTER_S))
        return round(delay_s * 1000 * (1 + random.random() * JITTER))

    async def _record(self, plan: Callable[[], Plan[Any]]) -> None:
        """Records the end of an attempt, as soon as Redis is there: an attempt that lost its lease changes nothing."""
        await insist(lambda: self._store.carry_out(plan()), self._outage)


def _message_id(entry: OutboxEntry, endpoint: str) -> str:
    """The id of the message to an endpoint about an event. It doesn't depend on who makes it, and sorts by event."""
    ms, _, number = entry.id.partition("-")
    return f"msg_{int(ms):013d}{int(number):06d}_{endpoint}"


def _result(command: str, entry: OutboxEntry) -> Call[Any]:
    return Call((command, keys.JOB + entry.task, "result"), lambda reply: reply, again=True)
