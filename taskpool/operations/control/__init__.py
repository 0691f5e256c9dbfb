"""What people who run Taskpool do: find tasks, and change many of them at once."""
