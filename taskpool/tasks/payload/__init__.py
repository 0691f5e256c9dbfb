"""Payload types: from annotations to a JSON Schema, to the conversion of payloads, to the faults of a payload."""

from __future__ import annotations
