"""`python -m taskpool.cli`, for where the `taskpool` script isn't on the path."""

from taskpool.cli import main

main(prog_name="taskpool")
