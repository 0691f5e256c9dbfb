"""Who asks, where from, how often, and whether that is allowed."""

from __future__ import annotations
