"""How deep JSON is nested, from its text."""

from __future__ import annotations

import pytest

from taskpool.text import is_deeper_than

WIDE = ",".join(["[0]"] * 3)


@pytest.mark.parametrize("levels", [1, 3, 5, 6, 20, 64])
@pytest.mark.parametrize("deep", [1, 2, 4, 5, 6, 7, 20, 21, 63, 64, 65])
@pytest.mark.parametrize("times", [1, 4096])
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"a[":%s}', '["]",%s,"\\\\\\"["]'])
def test_the_deepest_branch_counts(levels: int, deep: int, times: int, around: str) -> None:
    branches = ",".join(["[" * (deep - 1) + "{}" + "]" * (deep - 1)] * times)
    text = around % f"[{WIDE},{branches}]"
    depth = max(deep, 1) + 1 + (around != "%s")

    assert is_deeper_than(levels, text.encode()) == (depth > levels)
