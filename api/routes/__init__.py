"""The handlers, by what they are about. `api.app` says which path leads to which."""
