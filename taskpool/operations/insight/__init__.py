"""What operators ask: figures of the past, builds, failures, and why a task is not running."""
