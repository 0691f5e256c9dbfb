"""The task every contestant runs: it does nothing but count, so that what is measured is the queue."""

from taskpool import task


@task("increment")
def increment(n: int) -> dict[str, int]:
    """The next number."""
    return {"n": n + 1}
