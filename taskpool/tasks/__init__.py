"""How users write tasks, and how one attempt at a task runs."""
