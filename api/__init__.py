"""The HTTP interface: parse, call taskpool, render. It keeps no state and imports no user code.

`app.create_app` builds the Starlette application, `python -m taskpool_api` serves it.
"""
