"""Events from Redis to the clients of this process: the hub, subscriptions, queues, and the two protocols."""
