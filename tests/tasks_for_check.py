"""The task types of a new build, which can't read all that the old one stored."""

from __future__ import annotations

from taskpool import task


@task("resize")
def resize(width: int, height: int) -> None:
    """The old build knew no `height`."""


@task("mail", queue="mails")
def mail(to: str) -> str:
    return to
