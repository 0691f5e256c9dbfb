"""A task as a class: packs a directory into a zip file, with progress, and leaves nothing half made when stopped.

taskpool up --tasks examples/archive.py
taskpool submit archive directory=docs to=docs.zip
taskpool stop ID
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from taskpool import Task, TaskContext


class Archive(Task):
    """Pack the files below a directory into a zip file."""

    type = "archive"
    queue = "files"
    timeout_s = 3600

    class Payload:
        directory: Path
        to: Path

    def run(self, ctx: TaskContext) -> dict[str, Any]:
        files = sorted(path for path in self.payload.directory.rglob("*") if path.is_file())
        # Under a name of its own: a second attempt, or another task, never meets a half-made archive.
        part = self.payload.to.with_name(f"{self.payload.to.name}.{self.id}.part")
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for done, file in enumerate(files):
                    ctx.raise_if_cancelled()
                    ctx.progress(done, len(files), note=file.name)
                    archive.write(file, file.relative_to(self.payload.directory))
            size = part.stat().st_size
            part.replace(self.payload.to)
        finally:
            # Also when the task is stopped or out of time: both arrive as exceptions.
            part.unlink(missing_ok=True)
        ctx.log(f"packed {len(files)} files")
        return {"files": len(files), "bytes": size}
