"""The web page: its HTML at `/`, the files that it loads, below `/page/`, and its sessions.

The files are static and public; what the page shows, it reads from this API. Their URLs contain a hash of them all, so
browsers keep them for good, and a page never mixes files of two releases.
"""

from __future__ import annotations

from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from taskpool.access.api_key import ALL_SCOPES, Scope
from taskpool.errors import RedisFull, RedisRefused

from ..answers import Door, LiveFault, LiveFigures, SessionDocument, Unstored
from ..auth.caller import caller_of
from ..auth.gate import Gate
from ..auth.session import check_page, read_cookie, set_cookie
from ..events.live import Live
from ..events.sse import Stream, StreamHead
from ..events.streams import Streams
from ..http.declarations import EVENT_STREAM, JSON, Answer, operation
from ..http.files import File, hash_of, send
from ..http.prefix import prefix_of
from ..http.problems import Problem
from ..http.query import LiveQuery
from ..http.responses import Json, tagged
from .health import HealthRoutes

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The page needs nothing from other hosts, no inline script or style, and never makes HTML from text."""
MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
BASE: Final = b"{base}"
"""Stands in the page for the URL of the folder with the files."""
FOR_GOOD: Final = "public, max-age=31536000, immutable"
DOOR: Final = Answer(Door, headers=("ETag",), media_types=(JSON, "text/html"))
FIGURES: Final = Answer(str, media_types=(EVENT_STREAM,), events={"figures": LiveFigures, "fault": LiveFault})
SAME: Final = Answer(None, headers=("ETag",))
FILE: Final = Answer(str, headers=("ETag",), media_types=tuple(MEDIA_TYPES.values()))
OF_A_SESSION: Final = ("invalid-header", "forbidden", "misdirected", "rate-limited")


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /session."""

    key: Annotated[str, Meta(max_length=200, description="an API key", examples=["tp_..."])]


class PageRoutes:
    """Handlers of the page. `health` answers `/` for programs."""

    def __init__(self, health: HealthRoutes, gate: Gate, streams: Streams, live: Live) -> None:
        self._health, self._gate, self._streams, self._live = health, gate, streams, live

    @operation("open_door", tag="service", query=None, answers={200: DOOR, 304: SAME}, asks_redis=False)
    async def door(self, request: Request) -> Response:
        """GET /: get the web page, if the client accepts HTML. Other clients get the name and version of this service,
        and links to its pages."""
        if "text/html" not in request.headers.get("accept", ""):
            answer = tagged(self._health.door(request), request.scope["headers"])
            answer.raw_headers.append((b"vary", b"Accept"))
            return answer
        # Without a known prefix, the URL is relative: it fits a proxy that removes one without saying so.
        prefix = prefix_of(request.scope)
        base = f"{prefix}/page/{version()}" if prefix else f"page/{version()}"
        page = File("text/html", index().replace(BASE, escape(base).encode()))
        return send(page, request, POLICY, cache_control="no-cache", vary="Accept, Accept-Encoding")

    @operation(
        "get_page_file",
        tag="service",
        query=None,
        answers={200: FILE, 304: SAME},
        problems=["not-found"],
        asks_redis=False,
    )
    async def file(self, request: Request) -> Response:
        """GET /page/{version}/{file}: get a file that the web page loads."""
        name: str = request.path_params["file"]
        file = files().get(name)
        if file is None:
            raise Problem("not-found", "the page has no such file")
        # Another process, of another release, has made the page: browsers may not keep this under its version.
        is_ours = request.path_params["version"] == version()
        kept = FOR_GOOD if is_ours else "no-cache"
        return send(file, request, POLICY, cache_control=kept, vary="Accept-Encoding")

    @operation(
        "start_session",
        tag="service",
        body_fault="invalid-body",
        answers={204: Answer(None, headers=("Set-Cookie",)), 200: Unstored},
        problems=["unauthorized", "forbidden", "rate-limited"],
    )
    async def sign_in(self, request: Request, body: Login) -> Json:
        """POST /session: sign in to the web page with an API key; 204 with a cookie. It lasts 12 hours at most, and
        ends with the key. 200: Redis takes no writes, so there is no cookie."""
        session = await self._gate.sign_in(request.scope, body.key)
        if session is None:
            return Json(status=204, headers=[set_cookie(request.scope, "")])
        try:
            cookie = await self._gate.sessions.start(session)
        except (RedisFull, RedisRefused):
            return Json(Unstored(is_stored=False))
        if before := read_cookie(request.scope):  # the new cookie replaces it, so no page could end it later
            await self._gate.sessions.end(before)
        return Json(status=204, headers=[set_cookie(request.scope, cookie)])

    @operation("get_session", tag="service", query=None, answers={200: SessionDocument}, problems=OF_A_SESSION)
    async def session(self, request: Request) -> Json:
        """GET /session: get whose key the web page uses, and what it allows. It answers without a key, too."""
        needs_key = await self._gate.needs_key()
        caller = await self._gate.known_caller(request.scope)
        scopes = sorted(caller.scopes or ALL_SCOPES) if caller else []
        types, queues = (caller.types, caller.queues) if caller else (None, None)
        return Json(
            SessionDocument(
                key=caller.key if caller else None,
                name=caller.name if caller and caller.key else None,
                scopes=scopes,
                project=caller.project if caller else None,
                types=None if types is None else sorted(types),
                queues=None if queues is None else sorted(queues),
                needs_key=needs_key,
                read_only=not set(scopes) - {Scope.READ},
            )
        )

    @operation(
        "end_session",
        tag="service",
        answers={204: Answer(None, headers=("Set-Cookie",))},
        problems=["forbidden"],
    )
    async def sign_out(self, request: Request) -> Json:
        """DELETE /session: sign out of the web page; 204 also without a session."""
        if cookie := read_cookie(request.scope):
            check_page(request.scope)
            await self._gate.sessions.end(cookie)
        return Json(status=204, headers=[set_cookie(request.scope, "")])

    @operation("follow_figures", tag="fleet", answers={200: FIGURES}, problems=["too-many-streams"])
    async def live(self, request: Request, query: LiveQuery) -> Response:
        """GET /live: follow the figures of the cluster and the states of some tasks, as Server-Sent Events.

        There is one message a second: `figures`, or `fault` while Redis can't be read.
        """
        if request.method == "HEAD":
            return StreamHead()
        caller = caller_of(request.scope)
        queue = self._streams.admit(caller, "live")
        return Stream(
            self._live.texts([id for id in query.ids.split(",") if id], caller, queue),
            partial(self._streams.release, queue),
        )


@cache
def index() -> bytes:
    """The page itself."""
    return (folder() / "index.html").read_bytes()


@cache
def files() -> dict[str, File]:
    """Every file that the page loads, by its path below `folder()`. They are read once, and are small."""
    return {
        path.relative_to(folder()).as_posix(): File(MEDIA_TYPES[path.suffix], path.read_bytes())
        for path in sorted(folder().rglob("*"))
        if path.suffix in MEDIA_TYPES
    }


@cache
def version() -> str:
    """A hash of all files."""
    return hash_of(b"".join(file.etag.encode() + name.encode() for name, file in files().items()))


@cache
def folder() -> Path:
    """Where the files are: beside the package of this API, under its name in the source tree or its installed one."""
    beside = Path(__file__).resolve().parents[2]
    installed = beside / "taskpool_dashboard"
    return installed if installed.is_dir() else beside / "dashboard"
