"""A task's log: its lines, pages of it, and following it."""
