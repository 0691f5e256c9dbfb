"""What reached those who wait to hear of tasks: receivers of webhooks, and clients that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.chaos.evidence import Evidence, Finding
from benchmarks.chaos.followers import Told
from benchmarks.chaos.receiver import Message
from taskpool.types import TERMINAL


def expected_messages(evidence: Evidence) -> dict[str, str]:
    """The ids of the messages that must arrive, of each task that was accepted with a callback: one for each end."""
    return {
        f"{id}.{event.seq}": id
        for id, spec in evidence.specs().items()
        if "callback_url" in spec
        for event in evidence.events.get(id, ())
        if event.status in TERMINAL and not evidence.ran_in_rq(id)
    }


def check_webhooks(evidence: Evidence) -> Iterator[Finding]:
    """Findings: webhook.

    Each end arrives, in the end, under one id and well signed; nothing arrives that didn't happen.
    """
    arrived = {message.id for message in evidence.messages if message.status == 204}
    for id, task in expected_messages(evidence).items():
        if id not in arrived:
            tries = sum(message.id == id for message in evidence.messages)
            yield Finding("webhook", f"the message {id} never arrived ({tries} attempts were refused)", task)
    for message in evidence.messages:
        task, _, seq = message.id.partition(".")
        event = next((event for event in evidence.events.get(task, ()) if str(event.seq) == seq), None)
        if event is None or event.status not in TERMINAL:
            yield Finding("webhook", f"the message {message.id} came, and there is no such end", task)
        elif (message.data["id"], message.data["seq"], message.data["status"]) != (task, event.seq, event.status):
            yield Finding("webhook", f"the message {message.id} says {message.data}, not {event}", task)
        if not message.is_signed(evidence.secret):
            yield Finding("webhook", f"the message {message.id} isn't signed with the secret of callbacks", task)
    as_first: dict[str, Message] = {}
    for message in evidence.messages:
        first = as_first.setdefault(message.id, message)
        if (first.webhook_id, first.body) != (message.webhook_id, message.body):
            yield Finding("webhook", f"{message.id} came again as another message", message.id.partition(".")[0])


def check_followers(evidence: Evidence) -> Iterator[Finding]:
    """Findings: gap.

    Each follower was told every number of a task once and in order. There is no `resync`: fewer events happen than
    Redis keeps, no follower is slow, and Redis loses nothing.
    """
    for name, told in evidence.told.items():
        yield from _check_told(evidence, name, told)


def _check_told(evidence: Evidence, name: str, told: Sequence[Told]) -> Iterator[Finding]:
    last: dict[str, int] = {}
    follows_all = not name.startswith("task")
    for each in told:
        if each.what == "event":
            if each.seq != last.get(each.id, 0) + 1:
                yield Finding("gap", f"{name} was told number {each.seq} after {last.get(each.id, 0)}", each.id)
            last[each.id] = each.seq
        elif each.what == "snapshot":
            if each.seq < last.get(each.id, 0):
                yield Finding("gap", f"{name} was shown number {each.seq} after {last[each.id]}", each.id)
            last[each.id] = each.seq
        elif each.what != "gone" or follows_all:
            yield Finding("gap", f"{name} was told {each}", each.id or None)
    for id, events in evidence.events.items() if follows_all else ():
        if last.get(id, 0) != events[-1].seq:
            yield Finding("gap", f"{name} heard up to number {last.get(id, 0)} of {events[-1].seq}", id)
