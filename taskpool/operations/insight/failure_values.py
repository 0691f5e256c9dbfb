"""What callers give about groups of failures: fingerprints, and the steps of a redrive. Clients check them, too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from taskpool.errors import FailureNotFound, FieldError, InvalidTask
from taskpool.types.insight import ALL

STEPS: Final[tuple[int | str, ...]] = (1, 10, ALL)
MOST_STEPS: Final = 10
LARGEST_STEP: Final = 100_000
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{12}")


def check_fingerprint(fingerprint: object) -> None:
    """Return if a group may have this fingerprint. Raises: FailureNotFound."""
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise FailureNotFound(fingerprint)


def check_steps(steps: object) -> tuple[int | str, ...]:
    """The steps of a redrive. Raises: InvalidTask."""
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not 1 <= len(steps) <= MOST_STEPS:
        text = f"must be a list of 1 to {MOST_STEPS} steps"
        raise InvalidTask(f"/steps: {text}", [FieldError("/steps", text)])
    faults = [
        FieldError(f"/steps/{at}", f"must be a whole number from 1 to {LARGEST_STEP:,}, or, as the last one, 'all'")
        for at, step in enumerate(steps)
        if not (step == ALL and at == len(steps) - 1)
        and not (isinstance(step, int) and not isinstance(step, bool) and 1 <= step <= LARGEST_STEP)
    ]
    if faults:
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)
    return tuple(steps)
