"""Telemetry and error reports from real processes: what an OTLP collector and Sentry receive."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from taskpool import Client, TaskStatus
from tests.api_client import api_process
from tests.receiver import Receiver, receiver
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines

TASKS = str(Path(__file__).with_name("tasks_for_telemetry.py"))
TRACE = "0af7651916cd43dd8448eb211c80319c"


def sent(collector: Receiver, path: str, message: Any, parts: tuple[str, str, str]) -> list[tuple[str, Any]]:
    """What was sent to a path: the service's name, and each span, metric or log record."""
    found = []
    for request in list(collector.requests):
        if request.path == path:
            for resource in getattr(message.FromString(request.body), parts[0]):
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in getattr(resource, parts[1]):
                    found += [(names["service.name"], each) for each in getattr(scope, parts[2])]
    return found


def attributes(item: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in item.attributes}


@pytest.mark.parametrize("slots", [1, 4])
def test_an_api_and_a_worker_send_one_trace_with_its_metrics_and_logs(
    redis_url: str, tmp_path: Path, slots: int
) -> None:
    with receiver() as collector:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url("")} | {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, env=otel, otel="on", slots=slots) as workers:
            with (
                api_process(redis_url, tmp_path / "api", TASKPOOL_OTEL="on", **otel) as (_, url),
                Client(url) as client,
            ):
                id = client.add_task("ships", {"name": "Vasa"}, traceparent=f"00-{TRACE}-b7ad6b7169203331-01").id
                assert client.wait(id, timeout_s=PATIENCE_S).status is TaskStatus.DONE
            workers.send(signal.SIGTERM)
            assert workers.end() == 0

        spans = sent(collector, "/v1/traces", ExportTraceServiceRequest, ("resource_spans", "scope_spans", "spans"))
        assert sorted((service, span.name) for service, span in spans) == [
            ("taskpool-api", "send default"),
            ("taskpool-worker", "process default"),
        ]
        assert {span.trace_id.hex() for _, span in spans} == {TRACE}
        assert {attributes(span)["messaging.message.id"] for _, span in spans} == {id}
        logs = sent(collector, "/v1/logs", ExportLogsServiceRequest, ("resource_logs", "scope_logs", "log_records"))
        (record,) = [each for _, each in logs if each.body.string_value == "ships Vasa"]
        assert (record.trace_id.hex(), attributes(record)["messaging.message.id"]) == (TRACE, id)
        parts = ("resource_metrics", "scope_metrics", "metrics")
        metrics = {
            (service, each.name) for service, each in sent(collector, "/v1/metrics", ExportMetricsServiceRequest, parts)
        }
        assert {
            ("taskpool-api", "messaging.client.sent.messages"),
            ("taskpool-worker", "messaging.process.duration"),
        } <= metrics


@pytest.mark.parametrize("slots", [1, 4])
def test_sentry_receives_what_tasks_raise(redis_url: str, tmp_path: Path, slots: int) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, env={"SENTRY_NOTE": str(note)}, slots=slots) as workers:
        ids = {type: workers.pool.add_task(type, {"name": "Vasa"}).id for type in ("ships", "sinks", "sinks_async")}
        for id in ids.values():
            workers.pool.wait(id, timeout_s=PATIENCE_S)
        workers.send(signal.SIGTERM)
        assert workers.end() == 0

    events = [msgspec.json.decode(line) for line in eventually(lambda: lines(note))]
    assert {each["contexts"]["task"]["id"]: each["tags"]["task.type"] for each in events} == {
        ids[type]: type for type in ("sinks", "sinks_async")
    }
    for event in events:
        exception = event["exception"]["values"][-1]
        assert (exception["type"], exception["value"]) == ("NonRetryable", "Vasa sank")
        assert exception["stacktrace"]["frames"][-1]["function"] == event["tags"]["task.type"]
