"""Signatures after Standard Webhooks: HMAC-SHA256 over id, timestamp and body, one for each secret that is valid."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
LEAST_BYTES: Final = 24
MOST_BYTES: Final = 64


def new_secret() -> str:
    """A secret of 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def secret_fault(secret: str) -> str | None:
    """What is wrong with a secret; None when it is fine. The text doesn't show it."""
    try:
        size = len(_key(secret)) if secret.startswith(PREFIX) else 0
    except (binascii.Error, ValueError):
        size = 0
    if LEAST_BYTES <= size <= MOST_BYTES:
        return None
    return f"must be {PREFIX!r} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64"


def signed_headers(id: str, timestamp_s: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The three headers of a message; its signature is made with each of the secrets `keys`."""
    content = b"%s.%d.%s" % (id.encode(), timestamp_s, body)
    signatures = [base64.b64encode(hmac.digest(_key(key), content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
