"""The processes that run tasks: a supervisor, the fork server it forks from, and the worker processes."""
