"""The function every peer runs as its task: it only counts, so that what is measured is the queue."""


def increment(n: int) -> dict[str, int]:
    """The next number."""
    return {"n": n + 1}
