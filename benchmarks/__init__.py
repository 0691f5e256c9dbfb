"""Benchmarks: taskpool beside its peers, in the same run, on the same private Redis.

`python -m benchmarks` lists them; docs/benchmarks.md says what each measures and what it found.
"""
