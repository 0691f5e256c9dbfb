"""When a schedule runs: `Cron`, `Every` and `At`, and the times at which they are due.

Times are whole milliseconds since 1970, by Redis's clock. The next occurrence is always computed from the last one and
is strictly later, so nothing happens twice in the hour that is repeated at the end of daylight saving time.

`cronsim` (healthchecks.io's) evaluates five-field expressions as Debian's cron does. If the minute or the hour begins
with `*`, time passes as in UTC: an hour that doesn't exist has no runs, and a repeated hour has them twice. Otherwise
the expression names times of day: one that doesn't exist moves to the end of the gap, and one that comes twice runs at
the first.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice, pairwise, takewhile
from typing import Annotated, Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from msgspec.structs import asdict

from taskpool.errors import FieldError
from taskpool.types import utc
from taskpool.validation import DURATION, Duration, Field, faults_of, seconds_of, shortened

CatchUp = Literal["last", "none", "all"]
Overlap = Literal["allow", "skip", "queue_one", "replace"]

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Short names, and the five fields that they stand for."""
CRON_FIELDS: Final = ("minute", "hour", "day of the month", "month", "day of the week")
LONGEST_CRON: Final = 200
LEAST_EVERY_S: Final = 1
LONGEST_JITTER_S: Final = 86_400
LATE_S: Final = 60
"""With `catch_up="none"`, an occurrence that is later than this doesn't run any more."""
PREVIEWED: Final = 10
SHOWN_TIMES: Final = 6
HOUR_MS: Final = 3_600_000
_LOOKBACKS_MS: Final = tuple(hours * HOUR_MS for hours in (1, 24, 8 * 24, 32 * 24, 366 * 24))
"""The last occurrences before a time are searched for in windows that grow like this. Each holds few occurrences more
than the one before, so a schedule that was away for years costs milliseconds."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """When a schedule runs, and what happens to missed and overlapping runs. Exactly one of `cron`, `every` and `at` is
    given."""

    cron: Annotated[
        str | None,
        Field(
            "Run at the times of a cron expression. It has five fields: minute, hour, day of the month, month, day of"
            " the week. `@daily` and its like are allowed, too.",
            most=LONGEST_CRON,
            examples=["0 2 * * *"],
            metavar="EXPRESSION",
        ),
    ] = None
    tz: Annotated[
        str | None,
        Field(
            "The time zone of `cron`, by its IANA name.",
            default="`UTC`",
            needs="cron",
            examples=["Europe/Berlin"],
            metavar="ZONE",
        ),
    ] = None
    every: Annotated[
        Duration | None,
        Field(
            "Run at this interval: a number of seconds, or a text like `30s`, `1h30m` or `2d`. At least one second.",
            least=LEAST_EVERY_S,
            excludes=["cron"],
            pattern=DURATION,
            examples=["30s", 90],
        ),
    ] = None
    anchor: Annotated[
        datetime | None,
        Field("The time from which the intervals are counted.", default="1970-01-01T00:00:00Z", needs="every"),
    ] = None
    at: Annotated[datetime | None, Field("Run once, at this time.", excludes=["cron", "every"])] = None
    jitter: Annotated[
        Duration | None,
        Field(
            "Start each run later by up to this much. The offset of each run is fixed, and differs between schedules.",
            default="none",
            least=0,
            most=LONGEST_JITTER_S,
            pattern=DURATION,
        ),
    ] = None
    catch_up: Annotated[
        CatchUp,
        Field(
            "Which runs are made up for that were missed while no worker was up: the `last` one, `none`, or `all` up to"
            " `catch_up_limit`."
        ),
    ] = "last"
    catch_up_limit: Annotated[
        int, Field("How many missed runs `all` makes up for, the last ones.", least=1, most=1000)
    ] = 100
    overlap: Annotated[
        Overlap,
        Field(
            "What happens to a run while the previous one hasn't ended: it runs beside it (`allow`), is left out"
            " (`skip`), starts behind it if no other run waits already (`queue_one`), or takes its place (`replace`)."
        ),
    ] = "allow"


@dataclass(frozen=True)
class _Times:
    """What all three have: `timing` is the form in which a schedule is stored, the others are derived from that."""

    _: KW_ONLY
    jitter: Duration | None = None
    catch_up: CatchUp = "last"
    catch_up_limit: int = 100
    overlap: Overlap = "allow"

    def timing(self) -> Timing:
        """As a schedule is stored and shown. Nothing is checked."""
        return Timing(
            **self._own(),
            jitter=_plain(self.jitter),
            catch_up=self.catch_up,
            catch_up_limit=self.catch_up_limit,
            overlap=self.overlap,
        )

    def _own(self) -> dict[str, Any]:
        raise NotImplementedError

    def after(self, ms: int) -> int | None:
        """The first occurrence later than a time; None when there is none."""
        raise NotImplementedError

    def words(self) -> str:
        """In plain English."""
        raise NotImplementedError

    def from_on(self, ms: int) -> Iterator[int]:
        """Every occurrence later than a time, in order."""
        found = self.after(ms)
        while found is not None:
            yield found
            found = self.after(found)

    def last_of(self, first_ms: int, until_ms: int, most: int) -> Sequence[int]:
        """The last `most` occurrences up to `until_ms`, the first of which is `first_ms`. In order."""
        found: deque[int] = deque(maxlen=most)
        for window_ms in (*_LOOKBACKS_MS, until_ms):
            start_ms = max(first_ms, until_ms - window_ms)
            found.clear()
            found.extend([first_ms] if start_ms == first_ms else ())
            for each in self.from_on(start_ms):
                if each > until_ms:
                    break
                found.append(each)
            if start_ms == first_ms or len(found) == most:
                break
        return found


@dataclass(frozen=True)
class Cron(_Times):
    """At the times of a cron expression, in a time zone.

        Cron("0 2 * * *", tz="Europe/Berlin")
        Cron("*/15 8-18 * * MON-FRI", overlap="skip")

    The fields are minute, hour, day of the month, month and day of the week (0 or 7 is Sunday). They take names (`JAN`,
    `MON`), ranges, lists and steps. The day of the month may be `L`, the last one; the day of the week may be `5L` (the
    last Friday) or `MON#2` (the second Monday). If both days are restricted, either is enough, as in Debian's cron,
    unless one of them begins with `*`. `@daily`, `@hourly`, `@weekly`, `@monthly` and `@yearly` are short forms."""

    expression: str
    tz: str = "UTC"

    def _own(self) -> dict[str, Any]:
        return {"cron": self.expression, "tz": self.tz}

    def after(self, ms: int) -> int | None:
        """The first occurrence later than a time; None when there is none in the next 50 years."""
        from cronsim import CronSim  # needed by pools only

        for found in CronSim(_five_fields(self.expression), utc(ms).astimezone(ZoneInfo(self.tz))):
            found_ms: int = round(found.timestamp() * 1000)
            if found_ms > ms:  # started in the repeated hour, it begins with times of the first one
                return found_ms
        return None

    def words(self) -> str:
        """In plain English: "At 02:00 every day (Europe/Berlin)"."""
        from cronsim import CronSim

        said: str = CronSim(_five_fields(self.expression), utc(0)).explain()
        return f"{said} ({self.tz})"


@dataclass(frozen=True)
class Every(_Times):
    """At a fixed interval of at least one second, counted from `anchor`, by default from 1970-01-01T00:00:00Z. So all
    runs of `Every("15m")` are at full quarters of an hour.

    Every("30s")
    Every("1d", anchor=datetime(2026, 1, 1, 6, tzinfo=UTC))
    """

    interval: Duration
    anchor: datetime | None = None

    def _own(self) -> dict[str, Any]:
        return {"every": _plain(self.interval), "anchor": self.anchor}

    def after(self, ms: int) -> int:
        """The first occurrence later than a time."""
        every_ms, anchor_ms = self._ms()
        return anchor_ms + ((ms - anchor_ms) // every_ms + 1) * every_ms

    def last_of(self, first_ms: int, until_ms: int, most: int) -> Sequence[int]:
        """The last `most` occurrences up to `until_ms`, the first of which is `first_ms`. In order."""
        every_ms, _ = self._ms()
        latest_ms = self.after(until_ms) - every_ms
        earliest_ms = max(first_ms, latest_ms - (most - 1) * every_ms)
        return range(earliest_ms, latest_ms + 1, every_ms) or (first_ms,)

    def words(self) -> str:
        """In plain English."""
        every_ms, _ = self._ms()
        since = "" if self.anchor is None else f", counted from {_text(self.anchor)}"
        return f"Every {_span(every_ms)}{since}"

    def _ms(self) -> tuple[int, int]:
        return round(seconds_of(self.interval) * 1000), 0 if self.anchor is None else _ms_of(self.anchor)


@dataclass(frozen=True)
class At(_Times):
    """Once, at a time with a time zone: ``At(datetime(2026, 12, 24, 18, tzinfo=UTC))``."""

    time: datetime

    def _own(self) -> dict[str, Any]:
        return {"at": self.time}

    def after(self, ms: int) -> int | None:
        """The time itself, or None if it has come."""
        at_ms = _ms_of(self.time)
        return at_ms if at_ms > ms else None

    def words(self) -> str:
        """In plain English."""
        return f"Once, at {_text(self.time)}"


Times = Cron | Every | At


class DeclaredSchedule(NamedTuple):
    """A schedule that is declared in code: the task type that it submits and is named after, and the place."""

    name: str
    timing: Timing
    queue: str
    place: str


def times_of(timing: Timing) -> Times:
    """The times of a timing without faults."""
    rest: dict[str, Any] = {name: getattr(timing, name) for name in ("jitter", "catch_up", "catch_up_limit", "overlap")}
    if timing.cron is not None:
        return Cron(timing.cron, timing.tz or "UTC", **rest)
    if timing.every is not None:
        return Every(timing.every, timing.anchor, **rest)
    assert timing.at is not None
    return At(timing.at, **rest)


def _plain(duration: Duration | None) -> Duration | None:
    """A duration as JSON has it: a number of seconds, or a text."""
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _five_fields(expression: str) -> str:
    return ALIASES.get(expression.strip().lower(), expression)


def _ms_of(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _span(ms: int) -> str:
    """A span in its largest whole unit: 90 seconds, 15 minutes."""
    for unit, unit_ms in (("day", 86_400_000), ("hour", HOUR_MS), ("minute", 60_000), ("second", 1000)):
        if ms % unit_ms == 0:
            return unit if ms == unit_ms else f"{ms // unit_ms} {unit}s"
    return f"{ms / 1000:.12g} seconds"


def jitter_ms(timing: Timing, id: str, occurrence_ms: int) -> int:
    """How much later than its nominal time an occurrence of the schedule `id` starts: always the same for the same
    one."""
    most_ms = 0 if timing.jitter is None else round(seconds_of(timing.jitter) * 1000)
    if not most_ms:
        return 0
    digest = hashlib.blake2b(f"{id}\0{occurrence_ms}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % most_ms


# --- faults ---------------------------------------------------------------------------------------------------------


def timing_faults(timing: Timing) -> Iterator[FieldError]:
    """What is wrong with a timing: a JSON Pointer below it, and why."""
    given = {name: value for name, value in asdict(timing).items() if name in Timing.__struct_fields__}
    found = [FieldError(pointer, fault) for pointer, fault in faults_of(Timing, given)]
    yield from found
    kinds = [name for name in ("cron", "every", "at") if given[name] is not None]
    if not kinds:
        yield FieldError("", "give one of cron, every and at: it says when the schedule runs")
    for extra in kinds[1:]:
        yield FieldError(f"/{extra}", f"give either {kinds[0]} or {extra}, not both")
    for name, needed in (("tz", "cron"), ("anchor", "every")):
        if given[name] is not None and given[needed] is None:
            yield FieldError(f"/{name}", f"needs {needed}")
    if found or len(kinds) != 1:
        return
    if timing.tz is not None and (fault := zone_fault(timing.tz)):
        yield FieldError("/tz", fault)
    elif timing.cron is not None and (fault := cron_fault(timing.cron)):
        yield FieldError("/cron", fault)
    elif fault := _jitter_fault(timing):
        yield FieldError("/jitter", fault)


def cron_fault(expression: str) -> str | None:
    """What is wrong with a cron expression; None when it is fine."""
    from cronsim import CronSim, CronSimError

    shown = shortened(expression)
    if expression.strip().startswith("@") and expression.strip().lower() not in ALIASES:
        return f"{shown!r} isn't one of {', '.join(ALIASES)}"
    fields = _five_fields(expression).upper().split()
    if len(fields) == 6:
        return "has six fields; seconds aren't supported: use five fields, or `every` for intervals below a minute"
    if len(fields) != 5:
        return f"must have five fields ({', '.join(CRON_FIELDS)}), not {len(fields)}"
    if "W" in fields[2]:
        return f"{fields[2]!r}: W, the nearest working day, isn't supported"
    try:
        times = CronSim(" ".join(fields), utc(0))
        next(times)
    except CronSimError:
        at = next((at for at in range(5) if not _is_field(at, fields[at])), None)
        if at is None:
            return f"never comes: the month {shortened(fields[3])!r} has no day {shortened(fields[2])!r}"
        return f"the {CRON_FIELDS[at]} {shortened(fields[at])!r} is invalid"
    except StopIteration:
        return "never comes: no day matches it"
    return None


def _is_field(at: int, field: str) -> bool:
    from cronsim import CronSim, CronSimError

    try:
        CronSim(" ".join("*" if each != at else field for each in range(5)), utc(0))
    except CronSimError:
        return False
    return True


@cache
def _zones() -> frozenset[str]:
    """All zones that are the same on every host. (`localtime` is the host's own.)"""
    return frozenset(available_timezones() - {"localtime", "Factory"})


@lru_cache(maxsize=1024)
def zone_fault(name: str) -> str | None:
    """What is wrong with the name of a time zone; None when it is fine."""
    try:
        is_found = ZoneInfo(name).key in _zones()
    except (LookupError, ValueError, OSError):  # a name that isn't there, that leaves the folder, or that is a folder
        is_found = False
    if not is_found:
        near = difflib.get_close_matches(name, _zones(), n=1) if len(name) <= 64 else ()
        hint = f"; did you mean {near[0]!r}?" if near else ", such as Europe/Berlin"
        return f"must be the IANA name of a time zone, not {shortened(name)!r}{hint}"
    return None


def _jitter_fault(timing: Timing) -> str | None:
    """Runs must keep their order, so the jitter is shorter than the interval between them."""
    if timing.jitter is None or not (most_ms := round(seconds_of(timing.jitter) * 1000)):
        return None
    runs = list(islice(times_of(timing).from_on(0), PREVIEWED))
    gap_ms = min((later - earlier for earlier, later in pairwise(runs)), default=None)
    if gap_ms is not None and most_ms > gap_ms:
        return f"must not be longer than the time between two runs, which may be {_span(gap_ms)}"
    return None


# --- preview --------------------------------------------------------------------------------------------------------


def preview(timing: Timing, after_ms: int, most: int = PREVIEWED) -> Sequence[int]:
    """The next occurrences after a time."""
    return tuple(islice(times_of(timing).from_on(after_ms), most))


def clock_changes(timing: Timing, after_ms: int) -> Sequence[str]:
    """What happens to a cron expression when the clock of its time zone is next put forward and next put back, within a
    year: which times don't exist, and which come twice. Only if it has runs at these times."""
    if timing.cron is None:
        return ()
    zone, times = ZoneInfo(timing.tz or "UTC"), times_of(timing)
    return [
        note
        for change_ms, step_ms in islice(_changes(zone, after_ms), 2)
        if (note := _note(timing.cron, times, zone, change_ms, step_ms))
    ]


def _note(cron: str, times: Times, zone: ZoneInfo, change_ms: int, step_ms: int) -> str | None:
    # The local times in question are those between the two readings of the clock at the change.
    before, after = utc(change_ms - 1).astimezone(zone) + timedelta(milliseconds=1), utc(change_ms).astimezone(zone)
    start, end = (
        each.replace(tzinfo=None) for each in sorted((before, after), key=lambda each: each.replace(tzinfo=None))
    )
    wanted = _wall_times(cron, start, end)
    if not wanted:
        return None
    span = f"{start:%Y-%m-%d}, when the clock goes from {before:%H:%M} to {after:%H:%M}"
    if step_ms > 0:
        moved = times.after(change_ms - 1) == change_ms and not _wall_times(cron, end, end + timedelta(seconds=1))
        missing = ", ".join(f"{each:%H:%M}" for each in wanted[:SHOWN_TIMES]) + _more(wanted)
        verb = "doesn't" if len(wanted) == 1 else "don't"
        return f"{span}: {missing} {verb} exist, " + (
            f"so it runs at {after:%H:%M}" if moved else "so there is no run then"
        )
    found = [utc(each).astimezone(zone) for each in _until(times, change_ms + step_ms, change_ms - step_ms)]
    shown = ", ".join(f"{each:%H:%M %Z}" for each in found[:SHOWN_TIMES]) + _more(found)
    return f"{span}: {len(found)} {'run' if len(found) == 1 else 'runs'} in the hours that come twice ({shown})"


def _more(found: Sequence[object]) -> str:
    return ", …" if len(found) > SHOWN_TIMES else ""


def _wall_times(cron: str, start: datetime, end: datetime) -> list[datetime]:
    """The times of day of an expression from `start` until before `end`, as if the clock were never changed."""
    from cronsim import CronSim

    return list(takewhile(lambda each: each < end, CronSim(_five_fields(cron), start - timedelta(seconds=1))))


def _until(times: Times, first_ms: int, end_ms: int) -> list[int]:
    return list(takewhile(lambda each: each < end_ms, times.from_on(first_ms - 1)))


def _changes(zone: ZoneInfo, after_ms: int) -> Iterator[tuple[int, int]]:
    """The changes of a zone's clock in the year after a time: when, and by how many ms it is put forward."""

    def offset_ms(ms: int) -> int:
        offset = utc(ms).astimezone(zone).utcoffset()
        return 0 if offset is None else round(offset.total_seconds() * 1000)

    day_ms = 24 * HOUR_MS
    for low_ms in range(after_ms, after_ms + 366 * day_ms, day_ms):
        low, high = low_ms, low_ms + day_ms
        step_ms = offset_ms(high) - offset_ms(low)
        if step_ms:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_ms(middle) == offset_ms(low) else (low, middle)
            yield high, step_ms
