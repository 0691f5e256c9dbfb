"""OpenTelemetry: traces, metrics and log records of tasks. It needs the extra `otel`.

With the setting `TASKPOOL_OTEL=on`, worker and API processes call `start` and send what they record by OTLP. Programs
that set up OpenTelemetry themselves call `instrument`, and nothing else. Without either, this module isn't imported.

Names and attributes follow OpenTelemetry's semantic conventions for messaging (status: development). A submission is a
`send` span, whose context becomes the task's `traceparent`. An attempt is a `process` span. It is a child of that
context, and has a link to it: each attempt at a task, and whatever it submits, belongs to the trace of the submission.
Secrets of the payload are masked in everything that is recorded here.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from msgspec.structs import replace

try:
    from opentelemetry import metrics, trace
    from opentelemetry._logs import LogRecord, SeverityNumber, get_logger, set_logger_provider
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    from taskpool.errors import ConfigurationError

    raise ConfigurationError("TASKPOOL_OTEL=on needs OpenTelemetry: install the extra `otel`") from missing

from taskpool.tasks import hooks
from taskpool.tasks.attempt import LONGEST_ERROR, LONGEST_TRACEBACK, found_in, only_one
from taskpool.tasks.context import (
    Snooze,
    SoftTimeout,
    TaskContext,
    TaskStopped,
    described,
    qualified_name_of,
    traceback_of,
)
from taskpool.tasks.questions import Parked
from taskpool.text import hidden, own_version
from taskpool.types import TaskSpec

Attributes = Mapping[str, str | int | bool]

SYSTEM: Final = "taskpool"
TYPE: Final = "messaging.taskpool.task_type"
ATTEMPT: Final = "messaging.taskpool.attempt"
OUTCOME: Final = "messaging.taskpool.outcome"
BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The conventions name these."""
MOST_TASKS: Final = 1000
"""The types and queues of this many tasks of a submission are looked at."""
FLUSH_MS: Final = 3000

_OUTCOMES: Final = (
    (Snooze, "snoozed"), (Parked, "asked"), (TaskStopped, "stopped"), (CancelledError, "interrupted"),
    (SoftTimeout, "timeout"),
)  # fmt: skip
_propagator: Final = TraceContextTextMapPropagator()
"""Tasks carry a W3C trace context, whatever the program's own propagator is."""
_running: ContextVar[TaskContext | None] = ContextVar("taskpool-telemetry", default=None)

_tracer: Final = trace.get_tracer(SYSTEM, own_version())
_meter: Final = metrics.get_meter(SYSTEM, own_version())
_sent: Final = _meter.create_counter(
    "messaging.client.sent.messages", "{message}", "Number of messages producer attempted to send to the broker."
)
_consumed: Final = _meter.create_counter(
    "messaging.client.consumed.messages", "{message}", "Number of messages that were delivered to the application."
)
_operation_s: Final = _meter.create_histogram(
    "messaging.client.operation.duration",
    "s",
    "Duration of messaging operation initiated by a producer or consumer client.",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)
_process_s: Final = _meter.create_histogram(
    "messaging.process.duration",
    "s",
    "Duration of processing operation.",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)


def instrument() -> None:
    """Record spans and metrics of submissions and attempts in this process, with the providers that the program has
    set up or will set up. In a task file, set up the providers in a hook of `on_process_start`: their threads don't
    survive a fork. A second call does nothing."""
    if _Sending not in hooks.senders:
        hooks.senders[:] = [_Sending]
        hooks.arounds.insert(0, _process)  # hooks of the program run inside the span


# --- attempts ----------------------------------------------------------------------------------------------------


@contextmanager
def _process(ctx: TaskContext) -> Iterator[None]:
    attributes = _attributes("process", ctx.queue, ctx.type)
    parent = _context_of(ctx.traceparent, ctx.tracestate)
    span = _tracer.start_span(
        f"process {ctx.queue}",
        parent,
        SpanKind.CONSUMER,
        {**attributes, "messaging.message.id": ctx.id, ATTEMPT: ctx.attempt},
        _links(parent),
    )
    _consumed.add(1, attributes)
    token = _running.set(ctx)
    begun = time.perf_counter()
    outcome = "done"
    failed: dict[str, str] = {}
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        outcome = _outcome_of(error)
        if outcome in ("failed", "timeout"):
            failed = _record(span, error, lambda text: hidden(text, ctx._secrets))
        raise
    finally:
        span.set_attribute(OUTCOME, outcome)
        span.end()
        _process_s.record(time.perf_counter() - begun, {**attributes, **failed})
        _running.reset(token)


def _outcome_of(error: BaseException) -> str:
    return next((word for kind, word in _OUTCOMES if found_in(error, kind) is not None), "failed")


def _record(span: Span, error: BaseException, mask: Callable[[str], str]) -> dict[str, str]:
    """Add an exception to a span, as its own methods would, but with secrets masked. The attribute of the failure."""
    error = only_one(error)
    message = mask(described(error))[:LONGEST_ERROR]
    name = qualified_name_of(type(error))
    stack = mask(traceback_of(error, __name__, 2 * LONGEST_TRACEBACK))[-LONGEST_TRACEBACK:]
    failed = {"error.type": name}
    span.add_event("exception", {"exception.type": name, "exception.message": message, "exception.stacktrace": stack})
    span.set_status(Status(StatusCode.ERROR, message))
    span.set_attributes(failed)
    return failed


# --- submissions -------------------------------------------------------------------------------------------------


class _Sending(hooks.Sending):
    """A submission with a span. The context of the span is the creation context of those of its tasks that have none.

    A trace context that the submitter gave is kept. The span is a child of it then, if nothing else is traced here.
    """

    __slots__ = ("_attributes", "_begun", "_span")

    def __init__(self, specs: Sequence[TaskSpec]) -> None:
        given: Any = specs  # whatever the program gave: what can't be a list of specs is refused later
        super().__init__(list(given) if isinstance(given, Iterable) else given)

    def __enter__(self) -> _Sending:
        specs: Sequence[Any] = self.specs if isinstance(self.specs, list) else ()
        known = [spec for spec in specs[:MOST_TASKS] if isinstance(spec, TaskSpec)]  # others are refused later
        given = [(spec.traceparent, spec.tracestate) for spec in known if not _is_inherited(spec)]
        texts = dict.fromkeys(each for each in given if isinstance(each[0], str) and isinstance(each[1], str | None))
        contexts = [_context_of(*each) for each in texts]
        is_traced = trace.get_current_span().get_span_context().is_valid
        self._begun = time.perf_counter()
        self._attributes: dict[str, Any] = _attributes("send", _only(spec.queue for spec in known), None)
        self._span = _tracer.start_span(
            "send",
            contexts[0] if len(contexts) == 1 and not is_traced else None,
            SpanKind.PRODUCER,
            self._attributes,
            [link for context in contexts for link in _links(context)],
        )
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._span))
        self.headers = carrier
        if carrier and specs:
            mine: Any = {name: carrier.get(name) for name in ("traceparent", "tracestate")}
            self.specs = [replace(spec, **mine) if _takes_context(spec) else spec for spec in specs]
        return self

    def note(self, tasks: Sequence[hooks.SentTask]) -> None:
        part = tasks[:MOST_TASKS]
        attributes = _attributes("send", _only(each.shared.queue for each in part), _only(t.shared.type for t in part))
        self._attributes |= attributes
        self._span.set_attributes(attributes)
        if len(tasks) == 1:
            self._span.set_attribute("messaging.message.id", tasks[0].id)

    def __exit__(self, kind: Any = None, error: BaseException | None = None, *_: object) -> None:
        queue = self._attributes.get("messaging.destination.name")
        self._span.update_name(f"send {queue}" if queue else "send")
        count = len(self.specs) if isinstance(self.specs, list) else 0
        if count > 1:
            self._span.set_attribute("messaging.batch.message_count", count)
        failed: dict[str, str] = {}
        if isinstance(error, Exception):
            name = qualified_name_of(type(error))
            failed = {"error.type": name}
            self._span.set_status(Status(StatusCode.ERROR, name))  # a message may quote the payload
            self._span.set_attributes(failed)
        self._span.end()
        attributes = {**self._attributes, **failed}
        _operation_s.record(time.perf_counter() - self._begun, attributes)
        _sent.add(count, attributes)


def _takes_context(spec: object) -> bool:
    if not isinstance(spec, TaskSpec):
        return False
    return _is_inherited(spec) or (spec.traceparent is None and spec.tracestate is None)


def _is_inherited(spec: TaskSpec) -> bool:
    """Whether a spec has its trace context from the running task: its context here is the better one."""
    running = _running.get()
    return running is not None and spec.traceparent == running.traceparent


def _only(values: Iterator[str | None]) -> str | None:
    """The value, if there is only one. What is no text is refused later."""
    found = {value if isinstance(value, str) else None for value in values}
    return found.pop() if len(found) == 1 else None


# --- what both have ----------------------------------------------------------------------------------------------


def _attributes(operation: str, queue: str | None, type: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    if queue is not None:
        found["messaging.destination.name"] = queue
    if type is not None:
        found[TYPE] = type
    return found


def _context_of(traceparent: str | None, tracestate: str | None) -> Context | None:
    if traceparent is None:
        return None
    carrier = {"traceparent": traceparent} | ({} if tracestate is None else {"tracestate": tracestate})
    return _propagator.extract(carrier, Context())


def _links(context: Context | None) -> list[Link]:
    if context is None:
        return []
    there = trace.get_current_span(context).get_span_context()
    return [Link(there)] if there.is_valid else []


# --- the setting TASKPOOL_OTEL -------------------------------------------------------------------------------------


class LogHandler(logging.Handler):
    """Sends log records to OpenTelemetry's logger provider, with the trace and the task in which they were written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one."""
        try:
            self._send(record)
        except Exception:  # the arguments are the task's objects: their methods may raise anything
            self.handleError(record)

    def _send(self, record: logging.LogRecord) -> None:
        ctx = _running.get()
        secrets = None if ctx is None else ctx._secrets
        attributes: dict[str, Any] = {"code.file.path": record.pathname, "code.line.number": record.lineno}
        if ctx is not None:
            attributes |= {"messaging.message.id": ctx.id, TYPE: ctx.type, ATTEMPT: ctx.attempt}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            attributes["exception.type"] = qualified_name_of(type(error))
            attributes["exception.message"] = hidden(described(error), secrets)
            attributes["exception.stacktrace"] = hidden(traceback_of(error, "", LONGEST_TRACEBACK), secrets)
        logger = get_logger(record.name)
        logger.emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                severity_text=record.levelname,
                severity_number=_severity(record.levelno),
                body=hidden(record.getMessage(), secrets),
                attributes=attributes,
            )
        )


def _severity(level: int) -> SeverityNumber:
    for least, severity in (
        (logging.CRITICAL, SeverityNumber.FATAL),
        (logging.ERROR, SeverityNumber.ERROR),
        (logging.WARNING, SeverityNumber.WARN),
        (logging.INFO, SeverityNumber.INFO),
        (logging.DEBUG, SeverityNumber.DEBUG),
    ):
        if level >= least:
            return severity
    return SeverityNumber.TRACE


def instrument_workers() -> None:
    """For a fork server: instrument its worker processes, each of which sends by itself. Called before the task files
    are loaded, so that what they record in their own hooks is sent, too."""
    instrument()
    hooks.on_process_start(lambda: start("taskpool-worker"))
    hooks.on_process_stop(stop)


_stops: Final[list[Callable[[], object]]] = []


def start(service: str) -> None:
    """Send spans, metrics and log records of this process by OTLP over HTTP. OpenTelemetry's own environment variables
    say where to (`OTEL_EXPORTER_OTLP_ENDPOINT` and others); `OTEL_TRACES_EXPORTER=none` and the like switch off one of
    the three. `service` is the default of `OTEL_SERVICE_NAME`."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    instrument()
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    resource = Resource.create({**named, "service.instance.id": str(uuid.uuid4())})
    if _sends("TRACES"):
        tracers = TracerProvider(resource=resource)
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
        _stops.append(tracers.shutdown)
    if _sends("METRICS"):
        meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource)
        metrics.set_meter_provider(meters)
        _stops.append(lambda: meters.shutdown(timeout_millis=FLUSH_MS))
    if _sends("LOGS"):
        loggers = LoggerProvider(resource)
        loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        set_logger_provider(loggers)
        logging.getLogger().addHandler(LogHandler())
        _stops.append(loggers.shutdown)


def _sends(signal: str) -> bool:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "none"


def stop() -> None:
    """Send the rest."""
    while _stops:
        _stops.pop()()
