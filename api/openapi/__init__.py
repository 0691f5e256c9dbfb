"""The documents that describe this API, made of the code that answers."""
