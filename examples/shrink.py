"""A task that computes: shrinks a greyscale picture by averaging squares of pixels.

    taskpool up --tasks examples/shrink.py
    taskpool submit shrink --json '{"pixels": [[0, 8], [8, 16]], "factor": 2}' --wait 10

What stands in the annotations is the payload's schema: a factor below 1 is refused with a 422, before it is queued.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from taskpool import TaskContext, task

Grey = Annotated[int, Meta(ge=0, le=255)]
Factor = Annotated[int, Meta(ge=1, le=64, description="This many pixels in a row become one.")]


@task("shrink", queue="images", timeout_s=30)
def shrink(ctx: TaskContext, pixels: list[list[Grey]], factor: Factor = 2) -> list[list[int]]:
    """Shrink a greyscale picture, given as rows of pixels from 0 to 255."""
    if len({len(row) for row in pixels}) > 1:
        raise ValueError("the rows differ in length")
    shrunk = []
    for top in range(0, len(pixels), factor):
        ctx.raise_if_cancelled()
        ctx.progress(top, len(pixels))
        band = pixels[top : top + factor]
        squares = [
            [pixel for row in band for pixel in row[left : left + factor]] for left in range(0, len(band[0]), factor)
        ]
        shrunk.append([round(sum(square) / len(square)) for square in squares])
    return shrunk
