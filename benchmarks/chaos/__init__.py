"""The chaos soak: real processes, a real Redis, seeded faults, and a checker that forgives nothing.

`python -m benchmarks.chaos --seconds 60 --seed 1` runs it; docs/reliability.md says what is checked and promised.
"""
