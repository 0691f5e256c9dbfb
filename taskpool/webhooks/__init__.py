"""Webhooks: who is told of what, the message and its signature, where it may go, and how far it got."""
