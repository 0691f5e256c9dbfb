"""The `taskpool` command. It talks to Redis as any program would, and starts the parts as processes."""
