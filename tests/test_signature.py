"""Signatures: what we sign, Standard Webhooks' own package verifies."""

from __future__ import annotations

import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from taskpool.webhooks.endpoint import new_secret, secret_fault, signed_headers

BODY = '{"type":"taskpool.task.done","text":"é"}'.encode()


def test_a_message_is_verified_with_its_secret_and_with_no_other() -> None:
    secret = new_secret()
    headers = signed_headers("msg_1", int(time.time()), BODY, [secret])

    assert Webhook(secret).verify(BODY, headers)["text"] == "é"
    for wrong in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(time.time()) - 5)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY, {**headers, **wrong})
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)


def test_while_a_secret_rotates_both_verify() -> None:
    old, new = new_secret(), new_secret()

    headers = signed_headers("msg_1", int(time.time()), BODY, [new, old])

    assert headers["webhook-signature"].count("v1,") == 2
    assert Webhook(old).verify(BODY, headers) == Webhook(new).verify(BODY, headers)


def test_secrets_differ_and_hold_256_bits() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    assert all(secret_fault(secret) is None and len(secret) == 50 for secret in secrets)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "abc", "whsec_!!!", "whsec_" + "QUJD", "whsec_" + "QUJD" * 30, "QUJD" * 8]
)
def test_a_secret_that_is_none_is_refused_without_showing_it(secret: str) -> None:
    fault = secret_fault(secret)

    assert fault is not None
    assert "QUJD" not in fault
