"""What fuzzing has found stays found: each input of `tests/found` goes through the target that it once broke."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasty.targets import LONGEST_INPUT, all_targets

FOUND = sorted((Path(__file__).parents[1] / "found").glob("*/*"))


@pytest.fixture(scope="module")
def targets():
    return all_targets()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}: {path.name}")
def test_an_input_that_was_found(path, targets):
    targets[path.parent.name].run(path.read_bytes())


def test_every_target_takes_its_seeds(targets):
    """So that the targets cannot break unseen: the fuzzer itself is not part of the tests."""
    for name, fuzzed in targets.items():
        assert fuzzed.seeds, name
        for seed in fuzzed.seeds:
            assert len(seed) <= LONGEST_INPUT, name
            fuzzed.run(seed)


def test_a_first_seed_is_good(targets):
    """Else a target would refuse everything at its first check."""
    for fuzzed in targets.values():
        fuzzed.target(fuzzed.seeds[0])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_changed_seeds_give_a_result_or_an_error_for_whoever_sent_them(targets, data):
    fuzzed = targets[data.draw(st.sampled_from(sorted(targets)))]
    seed = data.draw(st.sampled_from(fuzzed.seeds))
    place = data.draw(st.integers(0, len(seed)))
    gone = data.draw(st.integers(0, 20))
    fuzzed.run(seed[:place] + data.draw(st.binary(max_size=8)) + seed[place + gone :])
