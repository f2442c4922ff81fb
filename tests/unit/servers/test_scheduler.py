"""The queue by its rules, and the scheduler with real threads."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trimodal.errors import TooManyRequests
from trimodal.servers.scheduler import Job, Queue, Scheduler


def job(slices=1):
    def steps():
        for _ in range(slices - 1):
            yield

    return Job(steps(), None)


class Model(RuleBasedStateMachine):
    """Every order of adding, taking, putting back, ending and dropping."""

    def __init__(self):
        super().__init__()
        self.queue = Queue(5)
        self.waiting = []
        self.taken = []

    @rule()
    def add(self):
        new = job()
        accepted = self.queue.add(new)
        assert accepted == (len(self.waiting) + len(self.taken) < 5)
        if accepted:
            self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self):
        first = self.queue.take()
        assert first is self.waiting.pop(0)
        self.taken.append(first)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def put_back(self, data):
        one = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.queue.put_back(one)
        if not one.dropped:
            self.waiting.append(one)

    @precondition(lambda self: self.taken)
    @rule()
    def done(self):
        self.taken.pop()
        self.queue.done()

    @precondition(lambda self: self.waiting or self.taken)
    @rule(data=st.data())
    def drop(self, data):
        one = data.draw(st.sampled_from(self.waiting + self.taken))
        self.queue.drop(one)
        if one in self.waiting:
            self.waiting.remove(one)

    @invariant()
    def counts(self):
        assert len(self.queue) == len(self.waiting) + len(self.taken) <= 5
        assert self.queue.waiting == len(self.waiting)


TestQueue = Model.TestCase


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_turns_are_taken_in_rounds(sizes):
    """A job of n slices ends in round n: it waits for at most n slices of any other."""
    queue = Queue(len(sizes))
    left = {}
    for size in sizes:
        one = job()
        left[one] = size
        assert queue.add(one)
    done_by = dict.fromkeys(left, 0)
    while len(queue):
        one = queue.take()
        done_by[one] += 1
        left[one] -= 1
        if left[one]:
            queue.put_back(one)
        else:
            queue.done()
            others = [count for other, count in done_by.items() if other is not one]
            assert all(count <= done_by[one] for count in others)
    assert sorted(done_by.values()) == sorted(sizes)


def test_a_closed_queue_takes_nothing_and_ends_whoever_waits():
    queue = Queue(5)
    ended = threading.Thread(target=queue.take)
    ended.start()
    queue.close()
    ended.join(10)
    assert not ended.is_alive()
    assert not queue.add(job())


@pytest.fixture
def scheduler():
    one = Scheduler(1, 2)
    yield one
    one.close()


def steps(slices=1, result=None, note=lambda: None):
    def make(_alone):
        for place in range(slices):
            if place:
                yield
            note()
        return result

    return make


def test_results_and_errors_go_to_whoever_asked(scheduler):
    def fail(_alone):
        yield
        raise ValueError("no")

    def leave(_alone):
        yield
        raise SystemExit

    async def main():
        assert await scheduler.run(steps(3, "three")) == "three"
        with pytest.raises(ValueError, match="no"):
            await scheduler.run(fail)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await scheduler.run(leave)
        assert await scheduler.run(steps(1, "still there")) == "still there"

    asyncio.run(main())
    assert len(scheduler.queue) == 0
    assert scheduler.alive


def test_no_more_than_may_wait(scheduler):
    go = threading.Event()

    async def main():
        tasks = [asyncio.create_task(scheduler.run(steps(1, n, go.wait))) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests, match="MAX_QUEUE_SIZE; try again in 1 s"):
            await scheduler.run(steps())
        go.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(main())


def test_a_small_job_overtakes_a_large_one(scheduler):
    order = []
    first = threading.Event()

    async def main():
        large = asyncio.create_task(scheduler.run(steps(500, None, lambda: (order.append("large"), first.wait()))))
        await asyncio.sleep(0)
        small = asyncio.create_task(scheduler.run(steps(1, None, lambda: order.append("small"))))
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(large, small)

    asyncio.run(main())
    assert order.index("small") <= 2
    assert len(order) == 501


def test_what_nobody_waits_for_is_given_up(scheduler):
    begun, go = threading.Event(), threading.Event()
    count = []

    def note():
        count.append(1)
        begun.set()
        go.wait()

    async def main():
        task = asyncio.create_task(scheduler.run(steps(500, None, note)))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await scheduler.run(steps())

    asyncio.run(main())
    assert len(count) == 1
    assert len(scheduler.queue) == 0


def test_whether_a_job_is_alone(scheduler):
    go = threading.Event()
    asked, told = threading.Event(), []

    def ask(alone):
        told.append(alone())
        asked.set()
        go.wait()
        yield
        told.append(alone())

    async def main():
        first = asyncio.create_task(scheduler.run(ask))
        await asyncio.to_thread(asked.wait)
        assert scheduler.oldest_slice() is not None
        second = asyncio.create_task(scheduler.run(steps(3)))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)

    asyncio.run(main())
    assert told[0] is True
    assert told[1] is False


def test_a_loop_that_has_ended_is_no_harm(scheduler):
    begun, go = threading.Event(), threading.Event()

    async def main():
        task = asyncio.create_task(scheduler.run(steps(1, None, lambda: (begun.set(), go.wait()))))
        await asyncio.to_thread(begun.wait)
        task.cancel()

    asyncio.run(main())
    go.set()
    assert asyncio.run(scheduler.run(steps(1, "next"))) == "next"
