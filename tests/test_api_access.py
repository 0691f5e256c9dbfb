"""Who may do what: every route says what it asks of its caller."""

from __future__ import annotations

from starlette.routing import Route, WebSocketRoute

from api.app import create_app
from api.http.declarations import Access, Guarded
from api.routing import Resource, Socket
from taskpool.settings import Settings

PUBLIC_PATHS = {"/", "/docs", "/docs/{file}", "/livez", "/readyz", "/page/{version}/{file:path}", "/session"}


def guards() -> dict[tuple[str, str], Access]:
    """What each method of each path asks for."""
    found: dict[tuple[str, str], Access] = {}
    for route in create_app(Settings(redis_url="redis://nowhere")).routes:
        assert isinstance(route, Route | WebSocketRoute), route
        served = route.endpoint
        assert isinstance(served, Resource | Socket), route.path
        handlers: dict[str, Guarded] = {"WS": served.guarded} if isinstance(served, Socket) else served.guarded
        found |= {(route.path, method): guarded.access for method, guarded in handlers.items()}
    return found


def test_every_route_authenticates_its_caller_except_the_few_public_ones() -> None:
    public = {path for (path, _), access in guards().items() if access.public}

    assert public == PUBLIC_PATHS


def test_every_other_route_names_a_scope_but_that_of_tickets_which_give_no_more_than_the_caller_has() -> None:
    assert [where for where, access in guards().items() if access.scope is None and not access.public] == [
        ("/tickets", "POST")
    ]


def test_what_changes_anything_takes_more_than_the_right_to_read() -> None:
    changing = {where: access.scope for where, access in guards().items() if where[1] not in ("GET", "HEAD", "WS")}

    free = {where for where, scope in changing.items() if scope in (None, "tasks:read")}
    # An operation asks for the scope of its action as well (tests/test_api_effects.py); a stack only shows something.
    operations = {
        ("/operations", "POST"),
        *((f"/operations/{{operation}}/{act}", "POST") for act in ("cancel", "undo")),
    }
    shown = {("/tasks/{id}/stack", "POST")}
    assert free == {("/tickets", "POST"), ("/session", "POST"), ("/session", "DELETE"), *operations, *shown}


def test_a_ticket_opens_what_only_reads() -> None:
    assert {access.scope for access in guards().values() if access.ticket} <= {"tasks:read"}
