"""What fuzzing has found stays found: each input of `tests/found` goes through the target that it once broke."""

from pathlib import Path

import pytest

from fuzzing.targets import all_targets

FOUND = sorted((Path(__file__).parents[1] / "found").glob("*/*"))


@pytest.fixture(scope="module")
def targets():
    return all_targets()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}: {path.name}")
def test_an_input_that_was_found(path, targets):
    targets[path.parent.name].run(path.read_bytes())


def test_every_target_takes_its_seeds_and_their_parts(targets):
    """So that the targets themselves cannot break unseen: the fuzzer is not part of the tests."""
    for fuzzed in targets.values():
        assert fuzzed.seeds
        for seed in fuzzed.seeds:
            for part in (seed, seed[: len(seed) // 2], seed[len(seed) // 2 :], seed + seed, b""):
                fuzzed.run(part[: fuzzed.max_length])
