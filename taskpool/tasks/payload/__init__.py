"""What a payload may be: from a task's signature, to its schema, to what is wrong with one."""

from __future__ import annotations
