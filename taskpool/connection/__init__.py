"""The way to Redis: its address, sockets that block and that await, subscriptions."""
