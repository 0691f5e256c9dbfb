"""Thumbnails: a task that needs a package which the service doesn't bring along."""

from __future__ import annotations

import base64
import io

from PIL import Image

from taskpool import task


@task("thumbnail", timeout_s=30)
def thumbnail(image: str, width: int = 80) -> dict[str, object]:
    """A smaller PNG of an image; both are base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    picture.thumbnail((width, width))
    output = io.BytesIO()
    picture.save(output, "PNG")
    return {"width": picture.width, "height": picture.height, "image": base64.b64encode(output.getvalue()).decode()}
