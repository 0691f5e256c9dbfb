"""The task types that come along."""
