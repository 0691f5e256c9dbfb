"""The way to Redis: connections, commands as values, keys, scripts, and the RQ job that holds a task."""
