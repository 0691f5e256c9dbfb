"""HTTP services that take a task and say how it stands: ours, and what its users would build or run instead."""
