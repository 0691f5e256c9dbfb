"""Settings for rq-dashboard, run as `rq-dashboard -j -c taskpool.rq_dashboard`: it then shows our tasks, and is closed
to other web pages.

rq-dashboard imports this module before it makes its application. From then on:

- Its process never unpickles, wherever in it a job is read (its own `-j` leaves out the workers page, the job page and
  the buttons). A job's page shows the result that our workers keep.
- It serves requests that name this machine, or a host of RQ_DASHBOARD_TRUSTED_HOSTS (DNS rebinding). Only a POST that
  its own pages sent changes anything (forged requests).
- Text of payloads, job ids and queue names can't become markup or script; a Content-Security-Policy stands behind that.

Its flags and RQ_DASHBOARD_... variables stay its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, Final

import click
import redis.exceptions
from flask import Response, current_app, g, request
from flask.blueprints import BlueprintSetupState
from jinja2 import TemplateAssertionError
from jinja2.ext import Extension
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer
from rq_dashboard import web
from werkzeug.serving import WSGIRequestHandler

from taskpool.validation import queue_name_fault

UNESCAPED: Final = ("rq_dashboard.job_info", "rq_dashboard.list_workers", "rq_dashboard.list_queues")
"""The documents whose texts the pages put into HTML as they are. The lists of jobs escape by themselves."""

NOT_JSON: Final = "(not JSON: left unread)"
HOSTS_VARIABLE: Final = "RQ_DASHBOARD_TRUSTED_HOSTS"
HOSTS: Final = frozenset(
    name.strip().lower() for name in ("localhost,127.0.0.1,[::1]," + os.environ.get(HOSTS_VARIABLE, "")).split(",")
) - {""}
"""Hosts by which a request may address it, without ports: another machine's page can't have these names."""
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")

CHOICES: Final = {
    "registry_name": ("queued", "scheduled", "deferred", "started", "finished", "failed", "canceled"),
    "order": ("asc", "dsc"),
}
NUMBERS: Final = {"per_page": 1000, "page": 1_000_000_000}  # the largest values; the smallest is 1
IDLE_S: Final = 10  # how long a connection may take to send a request or to read its answer

REWRITES: Final = {
    "rq_dashboard/base.html": ('<script type="text/javascript">', '<script nonce="{{ g.nonce }}">'),
    "rq_dashboard/scripts/jobs.js": ("'{{ queue.name }}'", "{{ queue.name|tojson }}"),
}
"""Templates, and what is replaced in each: its one inline script gets the nonce that lets it run, and a queue's name
becomes a JavaScript string, which Jinja doesn't escape in a .js file."""


class TaskJob(Job):
    """A job whose result may stand in its hash, where our workers leave it, instead of in RQ's result stream."""

    def return_value(self, refresh: bool = False) -> Any:
        """What the job returned; None while it hasn't."""
        value = super().return_value(refresh)
        return self._result if value is None else value


def loads(data: bytes) -> Any:
    """The value of JSON; NOT_JSON for anything else: one job that is pickled must not make a page of fifty fail."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        return NOT_JSON


def dumps(value: Any) -> bytes:
    """The value as JSON."""
    return json.dumps(value).encode()


def call_string(job: Job) -> str:
    """What the workers page shows as the call: the readable one, which needs no data to be deserialised."""
    return job.description or job.id


def without_markup(value: Any) -> Any:
    """A JSON value whose texts, names of members included, are escaped for HTML."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, list):
        return [without_markup(each) for each in value]
    if isinstance(value, dict):
        return {html.escape(name): without_markup(each) for name, each in value.items()}
    return value


class Rewritten(Extension):
    """Jinja: the templates with REWRITES."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        before, after = REWRITES.get(name or "", ("", ""))
        if before not in source:
            raise TemplateAssertionError(f"{before!r} isn't there: this needs rq-dashboard 0.9.0", 1, name, filename)
        return source.replace(before, after) if before else source


def style_hashes() -> str:
    """The style attributes of the templates as sources of a Content-Security-Policy."""
    templates = Path(web.__file__).with_name("templates").rglob("*.html")
    styles = {style for each in templates for style in re.findall(r'\bstyle="([^"]*)"', each.read_text())}
    hashes = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in sorted(styles)]
    return " ".join(f"'sha256-{each}'" for each in hashes)


POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        # Its one inline script has data of the page in it, so a nonce, not a hash. 'unsafe-eval' stays: the pages
        # compile their row templates with underscore, which needs `new Function`.
        "script-src 'self' 'unsafe-eval' 'nonce-{nonce}'",
        f"style-src 'self' 'unsafe-hashes' {style_hashes()}",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # `no-referrer` would make browsers send `Origin: null` from its own pages
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refusal(status: int, text: str, **headers: str) -> Response:
    """An answer that says why a request isn't served."""
    return Response(
        f"{text}\n", status, {"Cache-Control": "no-store", **headers}, content_type="text/plain; charset=utf-8"
    )


def check_source() -> Response | None:
    """Refuse what addresses another host, and changes that no page of this dashboard asked for."""
    g.nonce = secrets.token_urlsafe(16)
    host = request.headers.get("Host", "").lower()
    named = _HOST.fullmatch(host)
    if named is None or named[1] not in HOSTS:
        text = f"This dashboard isn't served under that host name. To allow it, list it in {HOSTS_VARIABLE}."
        return refusal(421, text)
    if request.url_rule is None or "POST" not in (request.url_rule.methods or ()) or request.method == "OPTIONS":
        return None
    if request.method != "POST":
        return refusal(405, "Only POST changes something.", Allow="POST")
    origin = request.headers.get("Origin") or request.headers.get("Referer")  # none: no browser
    fetched = request.headers.get("Sec-Fetch-Site", "same-origin")
    if fetched != "same-origin" or (origin and origin.partition("://")[2].partition("/")[0].lower() != host):
        text = "This request came from a page of another origin. (A proxy has to pass on Host with its port.)"
        return refusal(403, text)
    return None


def check_address() -> Response | None:
    """Refuse addresses of what can't exist, before rq-dashboard puts their parts into pages and Redis keys."""
    values: dict[str, Any] = request.view_args or {}
    if values.get("instance_number", 0) >= len(current_app.config["RQ_DASHBOARD_REDIS_URL"]):
        return refusal(404, "There is no Redis instance with this number.")
    for name, choices in CHOICES.items():
        if values.get(name, choices[0]) not in choices:
            return refusal(404, f"There is no such {name.removesuffix('_name')}; there are: {', '.join(choices)}.")
    if not re.fullmatch(r"[\w-]+", values.get("job_id", "-")):
        return refusal(404, "A job's id has only letters, digits, '_' and '-'.")
    for name, most in NUMBERS.items():
        text = str(values.get(name, 1))
        if not re.fullmatch("[1-9][0-9]{0,9}", text, re.ASCII) or int(text) > most:
            return refusal(404, f"{name} must be a whole number from 1 to {most}.")
    return None


def check_queue() -> Response | None:
    """Refuse a queue's name that ours can't have, unless a program that uses RQ has made such a queue."""
    name = (request.view_args or {}).get("queue_name")
    if name is None or not queue_name_fault(name):
        return None
    client = current_app.redis_conn  # type: ignore[attr-defined]
    if client.sismember(Queue.redis_queues_keys, Queue.redis_queue_namespace_prefix + name):
        return None
    return refusal(404, "There is no queue with this name.")


def finish(response: Response) -> Response:
    """Escape what a page would put into HTML unescaped, and tell browsers what the answer may do."""
    if response.is_json and request.endpoint in UNESCAPED:
        response.set_data(json.dumps(without_markup(response.get_json())))
    response.headers.update(HEADERS)
    response.headers["Content-Security-Policy"] = POLICY.format(nonce=g.nonce)
    return response


def set_up(state: BlueprintSetupState) -> None:
    """Change what the dashboard's process reads, serves and answers, once an application has its pages.

    The checks come before everything else of the application; check_queue comes after the check of the password."""
    context = click.get_current_context(silent=True)
    if context and context.params.get("password") and not context.params.get("username"):
        raise click.UsageError("a password is given without a user name, so it would not be asked for: give --username")
    for name in sorted(HOSTS):
        named = _HOST.fullmatch(name)
        if named is None or named[1] != name:
            raise click.UsageError(f"{HOSTS_VARIABLE}: {name!r} isn't a host name or address without a port")
    for serializer in (DefaultSerializer, JSONSerializer):  # the first one is pickle
        for function in (loads, dumps):
            setattr(serializer, function.__name__, staticmethod(function))
    web.Job = TaskJob
    Job.get_call_string = call_string  # type: ignore[assignment, method-assign]
    WSGIRequestHandler.timeout = IDLE_S
    app = state.app
    app.before_request_funcs.setdefault(None, []).extend([check_source, check_address])
    app.before_request_funcs.setdefault(web.blueprint.name, []).append(check_queue)
    app.after_request(finish)
    app.jinja_env.add_extension(Rewritten)
    app.register_error_handler(NoSuchJobError, lambda _: refusal(404, "There is no such job."))
    app.register_error_handler(InvalidJobOperation, lambda _: refusal(409, "The job's status doesn't allow this."))
    for unavailable in (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        app.register_error_handler(unavailable, lambda _: refusal(503, "Redis doesn't answer.", **{"Retry-After": "5"}))


web.blueprint.record_once(set_up)  # importing this module alone changes nothing
