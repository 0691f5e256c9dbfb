"""Requests and responses: reading bodies and queries, and rendering documents and errors."""
