"""Who may do what, and who did: API keys, their limits, the audit."""
