"""The commands for those who run Taskpool."""
