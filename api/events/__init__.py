"""Events from Redis to the clients of this process: the hub, what each client wants, and how it is told."""
