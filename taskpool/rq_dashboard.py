"""Settings for rq-dashboard, run as `rq-dashboard -j -c taskpool.rq_dashboard`: it then reads our tasks, safely.

rq-dashboard imports this module before it serves its first page. From then on its process never unpickles, wherever
in it a job is read (its own `-j` leaves out the workers page, the job page and the buttons); a job's page shows the
result that our workers keep; and pages that it fills without escaping get text without markup, so that a payload
can't run script in the browser of whoever looks at it. Its flags and RQ_DASHBOARD_... variables stay its own.
"""

from __future__ import annotations

import html
import json
from typing import Any, Final

from flask import Response, request
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer
from rq_dashboard import web

UNESCAPED: Final = ("rq_dashboard.job_info", "rq_dashboard.list_workers", "rq_dashboard.list_queues")
"""The documents whose texts rq-dashboard's pages put into HTML as they are. Its lists of jobs escape by themselves."""

NOT_JSON: Final = "(not JSON: left unread)"


class TaskJob(Job):
    """A job whose result may stand in its hash, where our workers leave it, instead of in RQ's result stream."""

    def return_value(self, refresh: bool = False) -> Any:
        """What the job returned; None while it hasn't."""
        value = super().return_value(refresh)
        return self._result if value is None else value


class JsonAlone:
    """RQ's serializers in this process, whichever is asked for."""

    @staticmethod
    def loads(data: bytes) -> Any:
        """The value; NOT_JSON for anything else: one job that is pickled must not make a page of fifty fail."""
        try:
            return json.loads(data.decode())
        except (ValueError, RecursionError):
            return NOT_JSON

    @staticmethod
    def dumps(value: Any) -> bytes:
        """The value as JSON."""
        return json.dumps(value).encode()

    @classmethod
    def take_over(cls, serializer: type) -> None:
        """Have an existing serializer, under whatever name it was imported, do the same."""
        for name in ("loads", "dumps"):
            setattr(serializer, name, staticmethod(getattr(cls, name)))


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


def escape(response: Response) -> Response:
    """Escape what a page would put into HTML unescaped."""
    if request.endpoint in UNESCAPED and response.is_json:
        response.set_data(json.dumps(without_markup(response.get_json())))
    return response


JsonAlone.take_over(DefaultSerializer)  # pickle
JsonAlone.take_over(JSONSerializer)
web.Job = TaskJob
Job.get_call_string = call_string  # type: ignore[assignment, method-assign]
web.blueprint.after_request(escape)
