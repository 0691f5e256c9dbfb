"""What schemathesis must know of the API that no schema can say.

Nothing here accepts a wrong answer: each hook keeps a test short, keeps it on this machine, or names a request that
only looks right.
"""

from __future__ import annotations

import os
import re
from functools import reduce
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.generation.meta import CONTENT_TYPE_PROBES

from taskpool.validation import LONGEST_S

OWN_KEY = os.environ["TEST_KEY_ID"]
SHORT_WAIT_S = 0.05
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d")
URL = re.compile(r"(https?://)[^/?#]+", re.IGNORECASE)

NO_SCHEMA_SAYS = {
    "anchor": "must be a time",
    "at": "must be a time",
    "cron": "",  # whatever it says: the language of expressions is none of schemas'
    "depends_on": "doesn't exist",
    "filter": "needs at least one",
    "format": "followed",
    "include_nonretryable": "is only for",
    "limit": "has no pages",
    "min_duration": "must be a duration",
    "name": "printable",
    "node": "needs a workflow",
    "nodes": "a workflow has 1 to",
    "queue": "is only for",
    "run_at": "from 1970 to 2999",
    "tz": "IANA name",
    "since": "how long ago",
    "unique_key": "has the same unique key",
    "until": "later than `since`",
}
"""Fields whose right values are those that the server has given out, or that it allows, or that go with another's, and
what it says of others."""

MOMENTS = ("run_at", "at", "anchor")
DURATIONS = ("timeout", "every", "jitter")


@schemathesis.hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """The key that the tests themselves use stays as it is."""
    return (case.path_parameters or {}).get("key") != OWN_KEY


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Workers call no other machine: every URL leads to a host that never exists (RFC 6761). Waits are short, and
    streams begin with something to tell. Where a page begins is for the page before to say. What a submission is
    answered is its own: with the key of an earlier one it would get that one's task, which may be gone."""
    body = _nowhere(case.body)
    if body != case.body:  # what is assigned is judged anew; no body at all would be judged wrong
        case.body = body
    case.query = query = dict(case.query or {})
    if _has_right_parameters(case):
        query.pop("cursor", None)
        case.headers.pop("Last-Event-ID", None)
        if "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = uuid4().hex
        if case.operation.tags == ["events"]:
            query.clear()
            if "{id}" not in case.operation.path:
                query["last_event_id"] = "0-0"
    if re.fullmatch(r"\d{1,9}(\.\d+)?([eE]\d)?", str(query.get("wait"))) and float(query["wait"]) <= LONGEST_S:
        query["wait"] = SHORT_WAIT_S
    if str(query.get("follow")).lower() in ("true", "1"):  # what is followed ends with the task, if it ever does
        query["follow"] = "false"


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether a failure is one: a request that a schema takes can still be wrong, and a task that is deleted before it
    has started stays there, as canceled."""
    if response.status_code == 429 or "429" in failure.message:  # authentication has failed too often
        return False
    if type(failure).__name__ == "UseAfterFree":
        document = response.json()
        return not (isinstance(document, dict) and document.get("status") == "canceled")
    return type(failure).__name__ != "RejectedPositiveData" or not _no_schema_says(case, response)


def _has_right_parameters(case: Case[Any]) -> bool:
    """Whether a case is right, or wrong in its media type alone, which isn't read where there is no body."""
    scenario = getattr(case.meta.phase.data, "scenario", None) if case.meta else None
    return case.meta is not None and (case.meta.generation.mode.is_positive or scenario in CONTENT_TYPE_PROBES)


def _nowhere(value: Any) -> Any:
    if isinstance(value, str):
        return URL.sub(r"\1nowhere.invalid", value)
    if isinstance(value, dict):
        return {name: _nowhere(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_nowhere(each) for each in value]
    return value


def _no_schema_says(case: Case[Any], response: Response) -> bool:
    """Whether all that a request is refused for is something that no schema says, or that its maker didn't heed."""
    problem = response.json()
    kind = problem["type"].rpartition(":")[2]
    if kind == "invalid-json":
        return "64 bits" in problem["detail"] or "range" in problem["detail"]
    return "errors" in problem and all(_is_beyond_schemas(case.body, fault) for fault in problem["errors"])


def _is_beyond_schemas(body: Any, fault: dict[str, str]) -> bool:
    at = fault.get("pointer", "/" + fault.get("parameter", ""))
    field = at.rpartition("/")[2]
    if field in MOMENTS and "RFC 3339" in fault["detail"]:  # the maker of requests passes over `format` here
        return not DATE_TIME.match(reduce(_step, at.split("/")[1:], body))
    if field in DURATIONS and "must be a duration from" in fault["detail"]:  # the pattern has no limits
        return isinstance(reduce(_step, at.split("/")[1:], body), str)
    if re.match(r"/nodes/\d+/(name|after)", at) and re.search(r"same name|no node has|twice|cycle", fault["detail"]):
        return True
    if field == "until" and "how long ago" in fault["detail"]:  # as `since`
        return True
    if at == "/queue" and "required" in fault["detail"]:  # for the action `move`
        return True
    if re.fullmatch(r"/steps/\d", at):  # 1.0 is an integer for schemas
        return True
    if field == "jitter" and "the time between two runs" in fault["detail"]:
        return True
    if "the schedule says when the task runs" in fault["detail"]:  # an option that only a task by itself can have
        return True
    return field in NO_SCHEMA_SAYS and NO_SCHEMA_SAYS[field] in fault["detail"]


def _step(value: Any, step: str) -> Any:
    return value[int(step)] if isinstance(value, list) else value[step]
