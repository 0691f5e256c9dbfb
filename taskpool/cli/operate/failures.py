"""`taskpool failures`, `redrive` and `doctor`: what goes wrong, and what to do about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.output import moment, print_fields, print_json, print_table, say
from taskpool.cli.service import service_command
from taskpool.operations.documents import FailureDocument, FindingDocument, RedriveDocument
from taskpool.operations.insight.failure_values import LARGEST_STEP, STEPS
from taskpool.text import printable
from taskpool.types import Exit
from taskpool.types.insight import ALL, FailureGroup, Finding, Redrive, RedriveStatus, Severity

if TYPE_CHECKING:
    from taskpool.cli.service import Service

FAILURES_EPILOG: Final = """\b
Examples:
  taskpool failures                  the groups of failures, the newest first
  taskpool failures --since 1h --type resize
  taskpool failures 3f9c02d51ab7     one group, with a traceback
  taskpool list --fingerprint 3f9c02d51ab7

Failures with the same fingerprint have the same cause: the same exception at the
same place in your code, or the same reason and type.
"""

REDRIVE_EPILOG: Final = """\b
Examples:
  taskpool redrive 3f9c02d51ab7              retry 1, then 10, then all
  taskpool redrive 3f9c02d51ab7 --step 5 --step all
  taskpool redrive 3f9c02d51ab7 --wait       until it has ended
  taskpool redrive 3f9c02d51ab7 --show       how far it has come
  taskpool redrive 3f9c02d51ab7 --stop

The next step begins when the tasks of the last one are done. When they fail again,
it stops by itself. Any worker pool drives it.
"""

DOCTOR_EPILOG: Final = """\b
Examples:
  taskpool doctor
  taskpool doctor --json | jq '.findings[] | select(.severity == "critical")'
  taskpool doctor --strict || exit 1

Exit status: 1 if something critical was found; with --strict, also for a warning.
"""

LOOK_S: Final = 0.5
COLOURS: Final = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


@service_command(short_help="Show the groups of failures, or one of them.", epilog=FAILURES_EPILOG, json="Print JSON.")
@click.argument("fingerprint", required=False)
@click.option("--type", metavar="TYPE", help="Only failures of tasks of this type.")
@click.option("--since", metavar="TIME", help="Only those since a time, or within a duration before now: 1h.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N", help="How many.")
def failures(service: Service, fingerprint: str | None, as_json: bool, **wanted: Any) -> None:
    """Show the groups of failures, those first that failed last; or the group with FINGERPRINT."""
    if fingerprint is not None:
        _show_group(service.get_failure(fingerprint), as_json=as_json)
        return
    groups = service.failures(**wanted)
    if as_json:
        print_json({"groups": [FailureDocument.of(each) for each in groups]})
        return
    columns = ("fingerprint", ">count", ">tasks", "last", "types", "builds", "what")
    print_table(columns, map(_row, groups), nothing="nothing has failed")


def _row(group: FailureGroup) -> tuple[str, ...]:
    what = " at ".join(filter(None, (group.error_type, group.place)))
    last = moment(group.last_seen).rpartition("(")[2].rstrip(")")
    return (
        group.fingerprint, str(group.count), str(group.tasks), last, ",".join(group.types), ",".join(group.builds), what
    )  # fmt: skip


def _show_group(group: FailureGroup, *, as_json: bool) -> None:
    if as_json:
        print_json(FailureDocument.of(group))
        return
    fields = {
        "fingerprint": group.fingerprint,
        "error": group.message,
        "exception": group.error_type,
        "place": group.place or "-",
        "count": f"{group.count:,} failed attempts; {group.tasks:,} tasks stayed failed",
        "first": moment(group.first_seen),
        "last": moment(group.last_seen),
        "last 24 h": " ".join(map(str, group.spark)),
    }
    for name in ("types", "builds", "queues", "workers"):
        counts = getattr(group, name)
        fields[name] = ", ".join(f"{each or '(other)'} {count:,}" for each, count in counts.items())
    fields |= {"sample": group.sample, "retryable": "yes" if group.retryable else "no: the last one was NonRetryable"}
    if group.redrive is not None:
        fields["redrive"] = _in_words(group.redrive)
    if group.traceback is not None:
        fields["traceback"] = group.traceback.rstrip("\n")
    print_fields(fields)


@service_command(
    short_help="Retry a group of failures in growing steps.", epilog=REDRIVE_EPILOG, json="Print the redrive as JSON."
)
@click.argument("fingerprint")
@click.option(
    "--step", "steps", multiple=True, metavar="N|all", help="How many tasks a step retries. [default: 1, 10, all]"
)
@click.option("--include-nonretryable", is_flag=True, help="Retry tasks that failed with NonRetryable, too.")
@click.option("--show", is_flag=True, help="Only show how far the last redrive has come.")
@click.option("--stop", is_flag=True, help="Retry no more tasks.")
@click.option("--wait", is_flag=True, help="Wait for its end, and end with the status 1 if it has stopped.")
def redrive(
    service: Service,
    *,
    fingerprint: str,
    steps: tuple[str, ...],
    include_nonretryable: bool,
    show: bool,
    stop: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Retry the failed tasks of the group with FINGERPRINT: 1, then 10, then all. It runs on when this command ends."""
    if (show or stop) and (steps or include_nonretryable or (show and stop)):
        raise click.UsageError("--show and --stop take no other option")
    if show:
        found = service.get_redrive(fingerprint)
    elif stop:
        found = service.stop_redrive(fingerprint)
    else:
        chosen = _steps(steps) if steps else STEPS
        found = service.redrive(fingerprint, steps=chosen, include_nonretryable=include_nonretryable)
    before = ""
    while wait and found.status is RedriveStatus.RUNNING:
        if not as_json and (now := _in_words(found)) != before:
            before = now
            say(now)
        time.sleep(LOOK_S)
        found = service.get_redrive(fingerprint)
    if as_json:
        print_json(RedriveDocument.of(found))
    else:
        say(_in_words(found))
    if wait and found.status is not RedriveStatus.DONE:
        sys.exit(Exit.FAILED)


def _steps(given: Sequence[str]) -> Sequence[int | str]:
    for at, step in enumerate(given):
        is_last = at == len(given) - 1
        is_number = step.isdecimal() and len(step) < 10  # int() refuses thousands of digits
        if not (step == ALL and is_last) and not (is_number and 1 <= int(step) <= LARGEST_STEP):
            raise click.BadParameter(f"{step!r} is no number from 1 to {LARGEST_STEP:,}, nor 'all' as the last step",
                                     param_hint="--step")  # fmt: skip
    return [ALL if step == ALL else int(step) for step in given]


def _in_words(redrive: Redrive) -> str:
    step = redrive.steps[redrive.step - 1] if redrive.step <= len(redrive.steps) else "?"
    counts = f"{redrive.retried:,} retried, {redrive.succeeded:,} done, {redrive.failed_again:,} failed again"
    left = f", {redrive.left_out:,} left out" if redrive.left_out else ""
    why = f" ({printable(redrive.why)})" if redrive.why else ""
    return f"{redrive.status.value}{why}, step {redrive.step} of {len(redrive.steps)} ({step}): {counts}{left}"


@service_command(
    short_help="Show what is wrong, and what to do.", epilog=DOCTOR_EPILOG, json="Print the findings as JSON."
)
@click.option("--strict", is_flag=True, help="End with the status 1 also for a warning.")
def doctor(service: Service, strict: bool, as_json: bool) -> None:
    """Check the service, Redis and the worker pools: what is wrong, and what to do about it."""
    found = service.findings(installation=True)
    if as_json:
        print_json({"findings": [FindingDocument.of(each) for each in found]})
    else:
        for finding in found:
            _print(finding)
        if not found:
            say("Nothing found wrong.")
    bad = {Severity.CRITICAL, Severity.WARNING} if strict else {Severity.CRITICAL}
    if any(each.severity in bad for each in found):
        sys.exit(Exit.FAILED)


def _print(finding: Finding) -> None:
    say(click.style(finding.severity.value, fg=COLOURS[finding.severity], bold=True) + " " + printable(finding.title))
    say(f"  {printable(finding.text)}")
    if finding.since is not None:
        say(f"  Since {moment(finding.since)}")
    if finding.action:
        say(f"  Try: {printable(finding.action)}")
    if finding.runbook:
        say(f"  See {finding.runbook}")
