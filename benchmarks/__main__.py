"""`python -m benchmarks NAME [options]` runs one benchmark; without a name it lists them."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "throughput",
    "enqueue",
    "latency",
    "idle",
    "drain",
    "durations",
    "costs",
    "memory",
    "http",
    "events",
    "workflows",
)


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in NAMES:
        sys.argv[0] = f"python -m benchmarks {sys.argv[1]}"
        status: int = import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return status
    for name in NAMES:
        summary = (import_module(f"benchmarks.{name}").__doc__ or "").partition("\n")[0]
        print(f"{name:<12}{summary}")
    return 2 if len(sys.argv) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
