"""`python -m benchmarks.chaos --profile P --seconds S --seed N`: a soak of that profile, or of each of them one after
the other. The exit status is 1 when the checker found anything."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.mutants import MUTATIONS, mutate
from benchmarks.chaos.plan import PROFILES, Plan
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
    parser.add_argument("--profile", choices=(*PROFILES, "all"), default="all", help="what it has (see plan.py)")
    parser.add_argument("--faults", help="one round of faults, comma separated, instead of the profile's")
    parser.add_argument("--redis", metavar="BINARY", help="the redis-server to run")
    parser.add_argument(
        "--mutation", choices=sorted(MUTATIONS), help="switch one safeguard off: the checker must find out"
    )
    parser.add_argument("--keep", metavar="DIRECTORY", help="where logs and effects are kept")
    flags = parser.parse_args()
    found = False
    for name in PROFILES if flags.profile == "all" else (flags.profile,):
        with ends_with_us(), tempfile.TemporaryDirectory(prefix="taskpool-chaos-") as scratch:
            directory = Path(flags.keep or scratch) / name
            directory.mkdir(parents=True, exist_ok=True)
            plan = Plan(
                seed=flags.seed,
                seconds=flags.seconds,
                profile=replace(PROFILES[name], faults=tuple(flags.faults.split(",")))
                if flags.faults
                else PROFILES[name],
                rate=flags.rate,
                redis_binary=flags.redis,
                source=str(mutate(flags.mutation, Path(scratch) / "source")) if flags.mutation else None,
            )
            result = run(plan, directory)
        print(f"--- {name}", render(result), sep="\n", flush=True)
        found = found or bool(result.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
