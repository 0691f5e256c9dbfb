"""The HTTP API from a program: `Client`, `AsyncClient`, and what both share."""
