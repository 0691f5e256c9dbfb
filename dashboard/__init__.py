"""The web page: static files that the API serves at `/`. See docs/dashboard.md."""
