"""OpenTelemetry: the spans, metrics and log records of submissions and attempts, with in-memory exporters."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from taskpool import Client, InvalidTask, NodeSpec, Secret, Snooze, TaskContext, TaskSpec, WorkflowSpec, task
from taskpool.tasks import hooks, telemetry
from taskpool.testing import InlinePool
from tests.api_client import api_process, publish_types

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
log = logging.getLogger("shop")


@task("greet", queue="mail")
def greet(ctx: TaskContext, name: str) -> str:
    with trace.get_tracer("shop").start_as_current_span("write letter"):
        log.warning("dear %s", name)
        return f"hello {name}"


@task("greet_async")
async def greet_async(name: str) -> str:
    with trace.get_tracer("shop").start_as_current_span("write letter"):
        return f"hello {name}"


@task("passes_on")
def passes_on(ctx: TaskContext) -> list[str]:
    return [ctx.add_task("greet", {"name": "a"}).id, *(each.id for each in ctx.add_tasks([greet.spec(name="b")]))]


@task("breaks", max_attempts=1)
def breaks(token: Secret[str]) -> None:
    raise LookupError(f"no user has the token {token}")


@task("snoozes")
def snoozes(ctx: TaskContext) -> None:
    if ctx.attempt == 1 and not ctx.state:
        ctx.checkpoint(1)
        raise Snooze(after_s=1)


class Telemetry:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter, self.logs, self.reader = (
            InMemorySpanExporter(),
            InMemoryLogRecordExporter(),  # type: ignore[no-untyped-call]
            InMemoryMetricReader(),
        )
        tracers, loggers = TracerProvider(), LoggerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([self.reader]))
        set_logger_provider(loggers)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> list[Any]:
        """The data points of a metric since the start of the process."""
        data: Any = self.reader.get_metrics_data()
        if data is None:
            return []
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [point for metric in found for point in metric.data.data_points]

    def count(self, name: str, **attributes: str) -> int:
        """How often something was counted or measured with these attributes."""
        points = [p for p in self.points(name) if attributes.items() <= dict(p.attributes).items()]
        return sum(int(point.count if hasattr(point, "count") else point.value) for point in points)


@pytest.fixture(scope="session")
def providers() -> Telemetry:
    """A process can set its providers once."""
    return Telemetry()


@pytest.fixture
def telemetered(providers: Telemetry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    senders, arounds = list(hooks.senders), list(hooks.arounds)
    telemetry.instrument()
    telemetry.instrument()
    providers.exporter.clear()
    providers.logs.clear()
    yield providers
    hooks.senders[:], hooks.arounds[:] = senders, arounds


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    with InlinePool(greet, greet_async, passes_on, breaks, snoozes, builtins=False) as pool:
        yield pool


def of(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


def ids(span: ReadableSpan) -> tuple[str, str]:
    context: Any = span.context
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)


def linked(span: ReadableSpan) -> list[str]:
    return [format_span_id(link.context.span_id) for link in span.links]


@pytest.mark.parametrize(("type", "queue"), [("greet", "mail"), ("greet_async", "default")])
def test_submission_attempt_and_user_code_are_one_trace(
    telemetered: Telemetry, pool: InlinePool, type: str, queue: str
) -> None:
    with trace.get_tracer("shop").start_as_current_span("GET /hello"):
        record = pool.run(type, {"name": "you"})

    assert record.result == "hello you"
    request, send, process, user = (
        telemetered.span(name) for name in ("GET /hello", f"send {queue}", f"process {queue}", "write letter")
    )
    assert (send.kind, process.kind, user.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
    assert len({ids(each)[0] for each in (request, send, process, user)}) == 1
    assert [parent(send), parent(process), parent(user)] == [ids(each)[1] for each in (request, send, process)]
    assert linked(process) == [ids(send)[1]]
    assert (record.traceparent or "").split("-")[1:3] == [*ids(send)]
    common = {
        "messaging.system": "taskpool",
        "messaging.destination.name": queue,
        "messaging.message.id": record.id,
        "messaging.taskpool.task_type": type,
    }
    assert of(send) == common | {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert of(process) == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.taskpool.attempt": 1,
        "messaging.taskpool.outcome": "done",
    }


def test_a_submitted_trace_context_is_kept_and_is_the_parent(telemetered: Telemetry, pool: InlinePool) -> None:
    record = pool.run("greet", {"name": "you"}, traceparent=TRACEPARENT, tracestate="a=1")

    assert (record.traceparent, record.tracestate) == (TRACEPARENT, "a=1")
    for name in ("send mail", "process mail"):
        span = telemetered.span(name)
        assert ids(span)[0] == TRACEPARENT.split("-")[1]
        assert parent(span) == TRACEPARENT.split("-")[2]
        assert linked(span) == [TRACEPARENT.split("-")[2]]


def test_what_a_task_adds_belongs_to_its_trace_and_is_added_once(telemetered: Telemetry, pool: InlinePool) -> None:
    record = pool.run("passes_on", {}, traceparent=TRACEPARENT)
    pool.run_all()

    process = telemetered.span("process default")
    sends = telemetered.spans("send mail")
    assert [parent(send) for send in sends] == [ids(process)[1]] * 2
    assert [parent(each) for each in telemetered.spans("process mail")] == [ids(send)[1] for send in sends]
    assert {ids(each)[0] for each in telemetered.exporter.get_finished_spans()} == {TRACEPARENT.split("-")[1]}

    assert len(record.result) == len(set(record.result)) == 2


def test_a_batch_is_one_span_and_the_parent_of_all_its_tasks(telemetered: Telemetry, pool: InlinePool) -> None:
    records = pool.add_tasks(
        [greet.spec(name="a"), TaskSpec(type="greet", payload={"name": "b"}, traceparent=TRACEPARENT)]
    )
    pool.run_all()

    send = telemetered.span("send mail")
    assert of(send)["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in of(send)
    assert linked(send) == [TRACEPARENT.split("-")[2]]
    assert records[1].traceparent == TRACEPARENT
    assert sorted(map(linked, telemetered.spans("process mail"))) == sorted(
        [[ids(send)[1]], [TRACEPARENT.split("-")[2]]]
    )


def test_a_failure_is_recorded_without_its_secrets(telemetered: Telemetry, pool: InlinePool) -> None:
    before = telemetered.count("messaging.process.duration", **{"error.type": "LookupError"})
    pool.run("breaks", {"token": "hunter2-hunter2"})

    process = telemetered.span("process default")
    (event,) = process.events
    assert process.status.status_code is StatusCode.ERROR
    assert of(process)["error.type"] == "LookupError"
    assert of(process)["messaging.taskpool.outcome"] == "failed"
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "no user has the token ***"
    assert "in breaks" in str(event.attributes["exception.stacktrace"])
    assert "hunter2" not in repr(telemetered.exporter.get_finished_spans()[0].to_json())
    assert telemetered.count("messaging.process.duration", **{"error.type": "LookupError"}) == before + 1


def test_a_snooze_is_no_error(telemetered: Telemetry, pool: InlinePool) -> None:
    pool.run("snoozes")

    first, second = telemetered.spans("process default")
    assert (of(first)["messaging.taskpool.outcome"], of(second)["messaging.taskpool.outcome"]) == ("snoozed", "done")
    assert first.status.status_code is second.status.status_code is StatusCode.UNSET
    assert linked(first) == linked(second)


def test_a_refused_submission_is_an_error(telemetered: Telemetry, pool: InlinePool) -> None:
    before = telemetered.count("messaging.client.operation.duration", **{"error.type": "InvalidPayload"})
    with pytest.raises(InvalidTask):
        pool.add_task("greet", {"name": 5})

    assert of(telemetered.span("send"))["error.type"] == "InvalidPayload"
    assert telemetered.count("messaging.client.operation.duration", **{"error.type": "InvalidPayload"}) == before + 1


@pytest.mark.parametrize("wrong", [None, 5, "greet", [None], [TaskSpec(type="greet", traceparent=5)]])  # type: ignore[arg-type]
def test_what_is_no_list_of_tasks_is_refused_as_usual(telemetered: Telemetry, pool: InlinePool, wrong: Any) -> None:
    with pytest.raises(InvalidTask):
        pool.add_tasks(wrong)

    assert len(telemetered.spans("send")) == 1


def test_a_generator_of_tasks_is_read_once(telemetered: Telemetry, pool: InlinePool) -> None:
    records = pool.add_tasks(greet.spec(name=str(n)) for n in range(3))  # type: ignore[arg-type]

    assert len({record.id for record in records}) == 3
    assert of(telemetered.span("send mail"))["messaging.batch.message_count"] == 3


def test_the_metrics_count_what_was_sent_and_processed(telemetered: Telemetry, pool: InlinePool) -> None:
    names = ("messaging.client.sent.messages", "messaging.client.consumed.messages", "messaging.process.duration")
    labels = {"messaging.system": "taskpool", "messaging.destination.name": "mail"}
    before = [telemetered.count(name, **labels) for name in names]

    pool.add_tasks([greet.spec(name=str(n)) for n in range(5)])
    pool.run_all()

    assert [telemetered.count(name, **labels) for name in names] == [n + 5 for n in before]
    assert telemetered.points("messaging.process.duration")[0].explicit_bounds == telemetry.BUCKETS_S


def test_log_records_carry_the_trace_and_the_task(telemetered: Telemetry, pool: InlinePool) -> None:
    handler = telemetry.LogHandler()
    log.addHandler(handler)
    try:
        record = pool.run("greet", {"name": "you"})
        log.warning("outside")
    finally:
        log.removeHandler(handler)

    inside, outside = (each.log_record for each in telemetered.logs.get_finished_logs())
    assert (inside.body, inside.severity_text) == ("dear you", "WARNING")
    assert format_span_id(inside.span_id or 0) == ids(telemetered.span("write letter"))[1]
    assert inside.attributes is not None
    assert inside.attributes["messaging.message.id"] == record.id
    assert inside.attributes["messaging.taskpool.attempt"] == 1
    assert outside.attributes is not None
    assert "messaging.message.id" not in outside.attributes


def test_a_client_is_the_producer(telemetered: Telemetry, redis_url: str, tmp_path: Path) -> None:
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "log") as (_, url), Client(url) as client:
        with trace.get_tracer("shop").start_as_current_span("request"):
            receipt = client.add_task("echo", {"message": "a"})
        (other,) = client.add_tasks([TaskSpec(type="echo", payload={"message": "a"})])
        traceparents = [client.get(each.id).traceparent for each in (receipt, other)]

        echo = TaskSpec(type="echo", payload={"message": 1})
        workflow = client.add_workflow(WorkflowSpec(name="w", nodes=[NodeSpec(name="a", task=echo)]))
        (node,) = client.get_workflow(workflow.id).nodes
        traceparents.append(client.get(str(node.id)).traceparent)

    sends = telemetered.spans("send")
    assert parent(sends[0]) == ids(telemetered.span("request"))[1]
    assert [(each or "").split("-")[1:3] for each in traceparents] == [[*ids(send)] for send in sends]


def test_nothing_is_imported_while_it_is_off() -> None:
    modules = "taskpool, taskpool_api.app, taskpool_workers.fork_server"
    code = f"import sys, {modules}; print('taskpool.tasks.telemetry' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"
