"""What the attempts of a dead process had written and nobody had sent: it goes into their logs before their ends do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from taskpool import keys, record, scripts
from taskpool.calls import Call, Plan
from taskpool.logs.line import Lines, LogLimits, decode_line
from taskpool.secret import Secrets
from workers.child import Child
from workers.nursery import Ending
from workers.slots import LaneState, Run

Numbered = tuple[int, bytes]
AT_ONCE = 500


class LastWords:
    """Of one process, read from its memory before another uses that."""

    def __init__(self, child: Child, ending: Ending) -> None:
        self._runs = {run.attempt_id: run for run in child.runs()}
        self._lines = {id: ended(lines) for id, lines in child.block.spool.lines().items() if id in self._runs}
        running = [run for run in self._runs.values() if run.state is LaneState.RUNNING]
        self._writer = running[0] if len(running) == 1 and ending.output else None
        self._output: Mapping[str, str] = ending.output

    def send(self, limits: LogLimits) -> Plan[None]:
        """Sends all that Redis doesn't have yet: the numbers of the lines tell. May be done again."""
        for id, run in self._runs.items():
            lines = self._lines.get(id, [])
            if run is self._writer:
                lines = lines + (yield from self._unread(run, limits, lines[-1][0] if lines else 0))
            calls = [scripts.log(run.id, id, part, limits, first=first) for first, part in _parts(lines)]
            if calls:
                yield calls

    def _unread(self, run: Run, limits: LogLimits, number: int) -> Plan[list[Numbered]]:
        """What stood in the pipes, as lines with the numbers that follow."""
        found, stored = yield (
            record.fetch_if_there(run.id),
            Call(("GET", keys.SECRETS + run.id), bytes_of, again=True),
        )
        collected: list[Numbered] = []

        def keep(count: int, line: bytes) -> None:
            collected.append((number + count, line))

        mask = Secrets.restore(stored).hide if stored else None
        lines = Lines(found.attempt if found else 0, limits, mask=mask, spool=keep)
        for stream, text in self._output.items():
            lines.write(stream, text)
        lines.end()
        return collected


def ended(lines: Iterable[Numbered]) -> list[Numbered]:
    """Lines as a spool has them, and behind them, as the next ones, those that never ended."""
    found: list[Numbered] = []
    still_open: dict[str, bytes] = {}
    for number, line in lines:
        stream = decode_line(line).stream
        if number:
            found.append((number, line))
            still_open.pop(stream, None)
        else:
            still_open[stream] = line
    last = found[-1][0] if found else 0
    return found + [(last + count, line) for count, line in enumerate(still_open.values(), 1)]


def bytes_of(reply: bytes | None) -> bytes:
    """A string; empty when there is none."""
    return reply or b""


def _parts(lines: Iterable[Numbered]) -> Iterator[tuple[int, list[bytes]]]:
    """Lines whose numbers follow each other, with the number of the first."""
    first, part = 0, list[bytes]()
    for number, line in lines:
        if part and (number != first + len(part) or len(part) == AT_ONCE):
            yield first, part
            part = []
        first = first if part else number
        part.append(line)
    if part:
        yield first, part
