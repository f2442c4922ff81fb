from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trimodal.serving.memory import EncoderCache
from trimodal.serving.split import _hash

chunk = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)
text = st.lists(chunk, min_size=1, max_size=4)


def outputs(number):
    return (np.full((1, 2), number, np.float32),)


def test_a_cache_forgets_what_was_used_longest_ago():
    cache = EncoderCache(3)
    keys = [(0, bytes([number])) for number in range(4)]
    cache.store({key: outputs(number) for number, key in enumerate(keys[:3])})
    assert list(cache.find(keys[:1])) == keys[:1]
    cache.store({keys[3]: outputs(3)})

    assert set(cache.find(keys)) == {keys[0], keys[2], keys[3]}
    assert len(cache) == 3
    for key, value in cache.find(keys).items():
        np.testing.assert_array_equal(value[0], outputs(key[1][0])[0])


def test_a_cache_of_no_entries_remembers_nothing():
    cache = EncoderCache(0)
    cache.store({(0, b"a"): outputs(1)})
    assert len(cache) == 0
    assert cache.find([(0, b"a")]) == {}


def test_a_cache_serves_many_threads():
    cache = EncoderCache(20)

    def work(seed):
        draw = random.Random(seed)
        for _ in range(400):
            numbers = draw.sample(range(60), 5)
            known = cache.find([(0, bytes([number])) for number in numbers])
            for key, value in known.items():
                assert value[0][0, 0] == key[1][0]
            cache.count(len(known), 5 - len(known))
            cache.store({(0, bytes([number])): outputs(number) for number in numbers})
            assert len(cache) <= 65  # one thread at a time may hold what it is about to forget

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(cache) == 20
    assert cache.hits + cache.misses == 8 * 400 * 5


@given(first=text, second=text)
def test_different_texts_never_share_a_key(first, second):
    assert (_hash(first) == _hash(second)) == (first == second)


def test_the_borders_of_chunks_are_part_of_the_key():
    texts = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1], [2], [3]], [[3], [1, 2]], [[1, 2], [3, 0]]]
    assert len({_hash(one) for one in texts}) == len(texts)
