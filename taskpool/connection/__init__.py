"""The way to Redis: its address, and sockets that block and that await."""
