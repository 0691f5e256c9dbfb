"""Endpoints in Redis: list, read, create, change, remove, rotate the secret. All are plans.

A caller with a project sees only that project's endpoints. Each project has a built-in endpoint `callback.PROJECT`, and
tasks without a project have `callback`. It is made when it is first needed; it holds the secret of their callbacks and
lists their deliveries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from taskpool.access.api_key import PROJECT
from taskpool.access.audit import Actor, entry, note
from taskpool.errors import CapReached, DeliveryNotFound, FieldError, InvalidWebhook, WebhookConflict, WebhookNotFound
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, Script, as_it_is, hash_of, one, readable, redis_ms, tolerant
from taskpool.url_guard import Allowed
from taskpool.validation import new_id
from taskpool.webhooks import endpoint
from taskpool.webhooks.delivery import Delivery, NewDelivery, SendAttempt, deliver, get_delivery
from taskpool.webhooks.endpoint import (
    CALLBACK,
    ENDPOINT_EVENTS,
    NewWebhook,
    Webhook,
    WebhookFields,
    is_callback,
    new_secret,
)

MOST_CALLBACKS: Final = 10_000  # the most projects whose built-in endpoint of callbacks is kept
MOST_OVERLAP_S: Final = 7 * 86_400
OVERLAP_S: Final = 86_400  # how long the secret that was replaced still signs, beside the new one
RETRIES: Final = 5

_save = Script("webhook_save")
_decode = msgspec.json.Decoder(Webhook).decode
_attempt = msgspec.json.Decoder(SendAttempt).decode


def list_webhooks(project: str | None) -> Plan[list[Webhook]]:
    """Every endpoint, the oldest first, without the built-in ones."""
    documents = yield from one(tolerant(Call(("HGETALL", keys.WEBHOOKS), hash_of, again=True), {}))
    found = readable(documents.items(), _decode, "webhook").values()
    listed = [each for each in found if not each.id.startswith(CALLBACK) and project in (None, each.project)]
    return sorted(listed, key=lambda each: each.id)


def last_failures(ids: Sequence[str]) -> Plan[dict[str, SendAttempt]]:
    """By the ids of endpoints: how the last attempt to send went, if it failed within the last minutes."""
    if not ids:
        return {}
    found = yield from one(Call(("MGET", *[keys.WEBHOOKS_FAILING + id for id in ids]), as_it_is, again=True))
    known = [(id, raw) for id, raw in zip(ids, found, strict=True) if raw not in (None, b"", b"1")]
    return readable(known, _attempt, "the last attempt to send to")


def get_webhook(id: str, project: str | None) -> Plan[Webhook]:
    """One endpoint. Raises: WebhookNotFound."""
    (webhook, _) = yield from _get(id, project)
    return webhook


def read_secret(id: str, by: Actor) -> Plan[Webhook]:
    """One endpoint, whose secret is about to be shown: the audit says so first. Raises: WebhookNotFound."""
    webhook = yield from get_webhook(id, by.project)
    yield from one(note(entry(by, "webhook.secret_read", webhook.id)))
    return webhook


def create_webhook(fields: NewWebhook, allowed: Allowed, by: Actor, *, most: int) -> Plan[Webhook]:
    """Store a new endpoint, unless its project has `most`. Raises: InvalidWebhook, CapReached."""
    given = fields.given()
    faults = list(endpoint.field_faults(given, allowed))
    if by.project is not None and given.setdefault("project", by.project) != by.project:
        faults.append(FieldError("/project", f"must be {by.project}, to which the caller belongs"))
    if faults:
        raise InvalidWebhook(faults)
    if "events" not in given and given.get("statuses"):
        given["events"] = endpoint.STEPS
    now_ms = yield from one(redis_ms())
    chosen = {"secret": new_secret(), **_once_each(given)}
    webhook = Webhook(**chosen, id="wh_" + new_id(), created_ms=now_ms, updated_ms=now_ms)
    most *= 1 if webhook.project else keys.WITHOUT_PROJECT
    word = yield from one(_saving(webhook, 0, entry(by, "webhook.created", webhook.id), most))
    if word == "full":
        raise CapReached("webhooks", webhook.project, most)
    return webhook


def update_webhook(id: str, fields: WebhookFields, allowed: Allowed, by: Actor) -> Plan[Webhook]:
    """Change an endpoint; enabling it forgets why it was disabled. Raises: WebhookNotFound, InvalidWebhook,
    WebhookConflict (it is changed by others all the time, or it is a built-in one)."""
    given = fields.given()
    if faults := list(endpoint.field_faults(given, allowed)):
        raise InvalidWebhook(faults)
    if is_callback(id):
        raise WebhookConflict("the built-in endpoint of callbacks can't be changed; its secret can")
    if "enabled" in given:
        given["disabled_reason"] = None if given["enabled"] else "disabled by hand"
    return (yield from _change(id, by.project, _once_each(given), entry(by, "webhook.changed", id)))


def disable_webhook(id: str, reason: str) -> Plan[None]:
    """Disable an endpoint for a reason that its readers see; nothing if it is gone meanwhile."""
    try:
        yield from _change(id, None, {"enabled": False, "disabled_reason": reason})
    except WebhookNotFound:
        pass


def rotate_secret(id: str, by: Actor, *, secret: str | None, overlap_s: float) -> Plan[Webhook]:
    """Replace an endpoint's secret; the one before still signs beside it for `overlap_s`. Raises: WebhookNotFound,
    InvalidWebhook."""
    if secret is not None and (fault := endpoint.secret_fault(secret)):
        raise InvalidWebhook([FieldError("/secret", fault)])
    webhook, now_ms = yield from _get(id, by.project)
    given = {
        "secret": secret or new_secret(),
        "previous_secret": webhook.secret if overlap_s else None,
        "previous_until_ms": now_ms + round(overlap_s * 1000) if overlap_s else 0,
    }
    changed = yield from _save_changed(webhook, given, now_ms, entry(by, "webhook.rotated", webhook.id))
    if changed is None:  # perhaps by another rotation: to repeat this one would end the overlap of that one
        raise _busy(id)
    return changed


def remove_webhook(id: str, by: Actor) -> Plan[None]:
    """Remove an endpoint with its deliveries. Raises: WebhookNotFound, WebhookConflict (it is changed by others all the
    time, or it is a built-in one)."""
    if is_callback(id):
        raise WebhookConflict("the built-in endpoint of callbacks can't be removed")
    for _ in range(RETRIES):
        webhook = yield from get_webhook(id, by.project)
        arguments = (webhook.id, "", webhook.revision, "", entry(by, "webhook.removed", webhook.id))
        if (yield from one(_save.word(*arguments, *ENDPOINT_EVENTS))) != "changed":
            return
    raise _busy(id)


def send_test(id: str, project: str | None) -> Plan[Delivery]:
    """Have a message sent to an endpoint that only tries whether it hears. Raises: WebhookNotFound, WebhookConflict (it
    is disabled, or a built-in one, or too much waits for it already)."""
    webhook, now_ms = yield from _get(id, project)
    if is_callback(id):
        raise WebhookConflict("the built-in endpoint of callbacks has no URL of its own: there is nothing to test")
    if not webhook.enabled:
        raise WebhookConflict(f"the webhook {id} is disabled, so nothing is sent to it: enable it first")
    message, event = f"msg_{now_ms:013d}t{new_id()[-5:]}_{webhook.id}", endpoint.TYPE_PREFIX + endpoint.TEST_EVENT
    trial = NewDelivery(message, webhook.id, webhook.id, "", event, webhook.url, endpoint.trial_body(webhook, now_ms))
    yield from one(deliver("", [trial]))
    try:
        return (yield from get_delivery(trial.id))
    except DeliveryNotFound:
        raise WebhookConflict(f"so many messages wait for the webhook {id} that it can't be sent another") from None


def callback_key(project: str | None) -> str:
    """The id under which a project's built-in endpoint of callbacks is stored."""
    return CALLBACK if project is None else f"{CALLBACK}.{project}"


def callback_webhook(project: str | None) -> Plan[tuple[Webhook, int]]:
    """The built-in endpoint of a project's callbacks, made if it isn't there yet; and Redis's time in ms."""
    key = callback_key(project)
    for _ in range(RETRIES):
        found, now_ms = yield (_stored(key), redis_ms())
        if found is not None:
            return found, now_ms
        times = {"created_ms": now_ms, "updated_ms": now_ms}
        new = Webhook(id=key, url="", secret=new_secret(), events=(), project=project, **times)
        if (yield from one(_saving(new, 0, most=MOST_CALLBACKS))) == "ok":
            return new, now_ms
    raise WebhookConflict("the secret of callbacks can't be made: there are too many webhooks")


def _get(id: str, project: str | None) -> Plan[tuple[Webhook, int]]:
    """An endpoint and Redis's time in ms."""
    if is_callback(id):
        of_project = id.removeprefix(CALLBACK).removeprefix(".") or project
        if project in (None, of_project) and (of_project is None or PROJECT.fullmatch(of_project)):
            return (yield from callback_webhook(of_project))
    found, now_ms = yield (_stored(id), redis_ms())
    if found is None or project not in (None, found.project):
        raise WebhookNotFound(id)
    return found, now_ms


def _change(id: str, project: str | None, given: dict[str, Any], audited: bytes = b"") -> Plan[Webhook]:
    for _ in range(RETRIES):
        webhook, now_ms = yield from _get(id, project)
        changed = yield from _save_changed(webhook, given, now_ms, audited)
        if changed is not None:
            return changed
    raise _busy(id)


def _save_changed(webhook: Webhook, given: dict[str, Any], now_ms: int, audited: bytes) -> Plan[Webhook | None]:
    """The endpoint as it is then; None if another change came first."""
    changed = replace(webhook, **given, revision=webhook.revision + 1, updated_ms=now_ms)
    word = yield from one(_saving(changed, webhook.revision, audited))
    return changed if word == "ok" else None


def _busy(id: str) -> WebhookConflict:
    return WebhookConflict(f"the webhook {id} is being changed; try again")


def _saving(webhook: Webhook, revision: int, audited: bytes = b"", most: int | None = None) -> Call[str]:
    """`most`: how many endpoints there may be of its project, or built-in ones if it is one; None: any number."""
    arguments = (webhook.id, msgspec.json.encode(webhook), revision, "" if most is None else most, audited)
    return _save.word(*arguments, *ENDPOINT_EVENTS)


def _stored(id: str) -> Call[Webhook | None]:
    call = Call(("HGET", keys.WEBHOOKS, id), lambda reply: _decode(reply) if reply else None, again=True)
    return tolerant(call, None)


def _once_each(given: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value for name, value in given.items()}
