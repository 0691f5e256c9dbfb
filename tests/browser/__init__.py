"""The web page in a real browser, with a real API and real workers."""
