"""deploy/monitoring: the alerts fire in their incidents, and they and the dashboards ask for metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from redis import Redis

from api.routes.metrics import Scrape
from taskpool.redis import keys
from taskpool.redis.keys import field_name
from tests.api_client import api, publish_types
from tests.compose import ROOT, read_services

FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
(GROUP,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
ALERTS: dict[str, Any] = {rule["alert"]: rule for rule in GROUP["rules"]}
DOCS = (ROOT / "docs" / "monitoring.md").read_text()

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (prometheus) isn't installed")


def promtool(*arguments: str | Path) -> None:
    ran = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def panels(path: Path) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard that show something."""
    yield from (each for each in json.loads(path.read_text())["panels"] if each["type"] != "row")


def queries(path: Path, values: Mapping[str, str] | None = None) -> list[str]:
    """What a dashboard asks Prometheus, annotations included, with these values of its variables; by default with those
    of "All"."""
    board = json.loads(path.read_text())
    filled = {each["name"]: each["allValue"] for each in board["templating"]["list"]} | dict(values or {})
    filled["__rate_interval"] = "5m"
    found = [target["expr"] for panel in panels(path) for target in panel["targets"]]
    found += [each["expr"] for each in board["annotations"]["list"]]
    return [re.sub(r"\$(\w+)", lambda variable: filled[variable[1]], query) for query in found]


def variables(path: Path) -> dict[str, tuple[str, str]]:
    """By the name of a dashboard's variable: the metric and the label whose values it has."""
    found = {}
    for each in json.loads(path.read_text())["templating"]["list"]:
        parts = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"])
        assert parts is not None, each
        found[each["name"]] = (parts[1], parts[2])
    return found


def datasources(part: Any) -> Iterator[Any]:
    """Every data source that a part of a dashboard names."""
    for name, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if name == "datasource":
            yield value
        else:
            yield from datasources(value)


@needs_promtool
def test_the_rules_are_valid_and_fire_in_their_incidents() -> None:
    promtool("check", "rules", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts.test.yml")


@needs_promtool
def test_the_configuration_for_several_api_processes_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(scrape_configs:.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    whole, others = yaml.safe_load(block)["scrape_configs"]
    (kept,) = others["metric_relabel_configs"]

    promtool("check", "config", tmp_path / "prometheus.yml")
    assert whole["job_name"] == "taskpool", "the alerts name it"
    names = {family.name for family in Scrape({}).collect()}
    own = {name for name in names if re.fullmatch(kept["regex"], name)}
    assert own == {name for name in names if name.startswith("taskpool_api_")}
    assert own


def test_each_alert_is_tested_documented_and_has_a_runbook() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    fired = "".join(str(each["promql_expr_test"]) for each in tests)
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in DOCS.splitlines()
        if line.startswith("### ")
    }

    assert set(re.findall(r"`(Taskpool\w+)`", DOCS)) == ALERTS.keys()
    for name, alert in ALERTS.items():
        assert f'alertname="{name}"' in fired
        assert alert["labels"]["severity"] in ("critical", "warning")
        page, _, heading = alert["annotations"]["runbook"].partition("#")
        assert page == "docs/monitoring.md"
        assert heading in headings, name


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
@needs_promtool
def test_a_dashboard_asks_valid_questions(path: Path, tmp_path: Path) -> None:
    rules = [{"record": f"query{at}", "expr": query} for at, query in enumerate(queries(path))]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))

    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_laid_out_and_reads_the_provisioned_source(path: Path) -> None:
    board = json.loads(path.read_text())
    (source,) = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    taken: set[tuple[int, int]] = set()

    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for part in (*panels(path), *(each for panel in panels(path) for each in panel["targets"])):
        assert "datasource" in part, part
    for part in (*board["templating"]["list"], *board["annotations"]["list"]):
        assert "datasource" in part, part
    for named in datasources(board):
        assert named == {"type": source["type"], "uid": source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for variable in board["templating"]["list"]:
        assert f"${variable['name']}" in path.read_text()
    for link in board["links"]:
        assert set(link["tags"]) <= set(board["tags"]), "the dashboards link to each other"


def test_every_dashboard_has_an_address_and_a_name_of_its_own() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]

    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)
    for name in re.findall(r'dashboards? "([^"]+)"', DOCS):
        assert any(board["title"].casefold().endswith(name.casefold()) for board in boards), name


async def test_alerts_and_dashboards_ask_for_metrics_and_labels_that_exist(redis_url: str) -> None:
    publish_types(redis_url)
    counted = [
        field_name(keys.SUBMITTED, "echo", "q"),
        *(field_name(keys.TASKS, outcome, "echo", "q") for outcome in keys.OUTCOMES),
        field_name(keys.WAIT_BUCKET, "echo", "q", "1"),
        field_name(keys.RUN_BUCKET, "echo", "q", "1"),
    ]
    redis = Redis.from_url(redis_url)
    redis.hset(keys.COUNTERS, mapping=dict.fromkeys(counted, 1))
    redis.set(keys.SUSPENDED, 1)
    async with api(redis_url) as client:
        await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "queue": "q"})
        text = (await client.get("/metrics")).text
    known = {"taskpool_worker_builds": {"build"}}  # no worker runs here
    for name, labels in re.findall(r"^(taskpool_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        known.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    outcomes = set(re.findall(r'outcome="(\w+)"', text))

    asked = [alert["expr"] for alert in ALERTS.values()] + [each for path in DASHBOARDS for each in queries(path)]
    asked += [f'{metric}{{{label}=""}}' for path in DASHBOARDS for metric, label in variables(path).values()]
    for query in asked:
        for name, labels in re.findall(r"\b(taskpool_\w+)(?:\{([^}]*)\})?", query):
            assert name in known, query
            assert set(re.findall(r"(\w+)=", labels)) <= known[name], query
        for words in re.findall(r'outcome=~?"([^"]*)"', query):
            assert set(words.split("|")) <= outcomes, query


@needs_promtool
async def test_the_alerts_can_be_evaluated_with_what_an_api_gives(redis_url: str, tmp_path: Path) -> None:
    """Two API processes are scraped. Queries that match several series with one would fail."""
    publish_types(redis_url)
    async with api(redis_url) as client:
        await client.post("/queues/a/pause")
        for queue in ("a", "b"):
            await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "queue": queue})
        text = (await client.get("/metrics")).text
    series = [{"series": 'up{job="taskpool"}', "values": "1x60"}]
    for name, labels, value in re.findall(r"^(taskpool_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        for instance in ("one", "two"):
            given = ",".join([*filter(None, [labels]), f'instance="{instance}"'])
            series.append({"series": f"{name}{{{given}}}", "values": f"{value}x60"})
    wanted = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in ("TaskpoolNoWorkers", "TaskpoolPoolGone")]
    expected = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing",alertname=~".*(NoWorkers|PoolGone)"})',
        "eval_time": "50m",
        "exp_samples": wanted,
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [expected]}
    document = {"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))

    promtool("test", "rules", tmp_path / "test.yml")


@pytest.mark.parametrize("key", ["", "tp_abc_def"])
def test_the_compose_file_starts_prometheus_with_its_configuration(key: str, tmp_path: Path) -> None:
    service = read_services({"METRICS_KEY": key})["prometheus"]
    (script,) = service["command"]
    here = {"/etc/prometheus": str(FOLDER), "/tmp": str(tmp_path), "exec prometheus": "exec echo", "$$": "$"}
    script = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], script)

    ran = subprocess.run(
        [*service["entrypoint"], script], env=service["environment"], capture_output=True, text=True, check=True
    )

    assert f"--config.file={tmp_path}/prometheus.yml" in ran.stdout.split()
    written = (tmp_path / "prometheus.yml").read_text()
    (job,) = yaml.safe_load(written)["scrape_configs"]
    assert job["job_name"] == "taskpool", "the alerts name it"
    assert job.get("authorization") == ({"credentials": key} if key else None)
    if shutil.which("promtool"):
        (tmp_path / "prometheus.yml").write_text(written.replace("/etc/prometheus", str(FOLDER)))
        promtool("check", "config", tmp_path / "prometheus.yml")


def test_grafana_reads_the_folders_that_the_compose_file_gives_it() -> None:
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in read_services({})["grafana"]["volumes"][:2])
    (provider,) = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/taskpool.yml").read_text())["providers"]

    assert {(ROOT / path).resolve(): place for path, place in mounted.items()} == {
        FOLDER / "grafana" / "provisioning": "/etc/grafana/provisioning",
        FOLDER / "grafana" / "dashboards": provider["options"]["path"],
    }


def test_prometheus_and_grafana_reach_what_they_read() -> None:
    services = read_services({})
    prometheus, grafana, api = (services[name] for name in ("prometheus", "grafana", "api"))
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (source,) = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    address = urlsplit(source["url"])

    assert job["static_configs"] == [{"targets": [f"api:{api['environment']['TASKPOOL_PORT']}"]}]
    assert set(prometheus["networks"]) & set(api["networks"])
    assert (address.scheme, address.hostname) == ("http", "prometheus")
    assert prometheus["ports"] == [f"127.0.0.1:9090:{address.port}"]
    assert set(grafana["networks"]) & set(prometheus["networks"])
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"], "Grafana's steps follow it"


def test_prometheus_finds_its_files_and_its_data_where_they_are_mounted() -> None:
    prometheus = read_services({})["prometheus"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in prometheus["volumes"])
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (script,) = prometheus["command"]

    assert mounted["./deploy/monitoring"] == "/etc/prometheus"
    assert "cp /etc/prometheus/prometheus.yml " in script
    assert f"--storage.tsdb.path={mounted['prometheus-data']} " in script
    for path in config["rule_files"]:
        assert (FOLDER / Path(path).relative_to("/etc/prometheus")).is_file()
