"""Webhooks: endpoints, messages and their signatures, and deliveries."""
