"""`python -m benchmarks.chaos --seconds S --seed N`: one soak; the exit status is 1 when the checker found anything."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.mutants import MUTATIONS, mutate
from benchmarks.chaos.plan import FAULTS, Plan
from benchmarks.chaos.report import render
from benchmarks.chaos.soak import run
from benchmarks.ending import ends_with_us


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long load and faults last")
    parser.add_argument("--seed", type=int, default=1, help="decides the load and which faults come")
    parser.add_argument(
        "--rate", type=float, default=Plan.__dataclass_fields__["rate"].default, help="submissions a second"
    )
    parser.add_argument("--faults", default=",".join(FAULTS), help="one round of faults, comma separated")
    parser.add_argument("--redis", metavar="BINARY", help="the redis-server to run")
    parser.add_argument(
        "--mutation", choices=sorted(MUTATIONS), help="switch one safeguard off: the checker must find out"
    )
    parser.add_argument("--keep", metavar="DIRECTORY", help="where logs and effects are kept")
    flags = parser.parse_args()
    with ends_with_us(), tempfile.TemporaryDirectory(prefix="taskpool-chaos-") as scratch:
        directory = Path(flags.keep or scratch)
        directory.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            seed=flags.seed,
            seconds=flags.seconds,
            rate=flags.rate,
            faults=tuple(flags.faults.split(",")),
            redis_binary=flags.redis,
            source=str(mutate(flags.mutation, Path(scratch) / "source")) if flags.mutation else None,
        )
        result = run(plan, directory)
    print(render(result))
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
