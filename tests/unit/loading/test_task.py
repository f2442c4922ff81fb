from __future__ import annotations

from pathlib import Path

import pytest

from trimodal.loading.task import expendable


def badness():
    return int(Path("/proc/self/oom_score_adj").read_text())


@pytest.mark.parametrize("error", [None, MemoryError])
def test_what_is_expendable_is_so_for_the_time_of_the_block(error):
    before = badness()
    seen = []
    try:
        with expendable():
            seen.append(badness())
            if error is not None:
                raise error
    except MemoryError:
        seen.append("raised")
    assert seen == [1000] + ["raised"] * (error is not None)
    assert badness() == before
