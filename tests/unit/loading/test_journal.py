from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.errors import OptimizationError
from trimodal.loading.journal import Journal, unfinished


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_a_step_that_ends_well(journal):
    with journal.step("build", "rebuild-fp32"):
        journal.write("built", rung="rebuild-fp32", bytes=3)

    assert [event["event"] for event in journal.read()] == ["begin", "built", "end"]
    assert journal.read()[-1] == {"event": "end", "step": "build", "rung": "rebuild-fp32", "cause": None}
    assert unfinished(journal.read()) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OptimizationError("the optimizer fused 0 of 24 attention layers"), "fused 0 of 24"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/secret"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (KeyError("a customer's text"), "KeyError in build"),
    ],
)
def test_a_step_that_fails_goes_no_further_and_tells_no_path_or_text(journal, error, cause):
    with journal.step("build", "rebuild-fp32"):
        raise error

    end = journal.read()[-1]
    assert cause in end["cause"]
    assert "/" not in end["cause"]
    assert "customer" not in end["cause"]


def test_what_was_begun_and_not_ended_is_found(journal):
    with journal.step("read"):
        pass
    journal.write("begin", step="judge", rung="rebuild-fp32")

    assert unfinished(journal.read()) == {"event": "begin", "step": "judge", "rung": "rebuild-fp32"}


def test_a_line_that_was_not_finished_is_left_out(journal):
    journal.write("begin", step="judge", rung=None)
    with journal.path.open("a") as file:
        file.write('{"event": "end", "step": "ju')

    assert [event["event"] for event in journal.read()] == ["begin"]


def test_no_journal_is_an_empty_one(journal):
    assert journal.read() == []


@given(st.lists(st.sampled_from(["a", "b\n", "é", '"']), max_size=5))
def test_facts_come_back(tmp_path_factory, values):
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for value in values:
        journal.write("fact", value=value)

    assert [event["value"] for event in journal.read()] == values
