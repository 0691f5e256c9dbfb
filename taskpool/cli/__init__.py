"""The `taskpool` command. It talks to Redis as any program would, and starts the parts as processes."""


def main() -> None:
    """Runs the command line: the entry point of the `taskpool` script."""
    from taskpool.cli.__main__ import main as command

    command()
