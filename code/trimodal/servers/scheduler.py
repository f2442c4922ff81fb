"""Decides which request is worked on: a bounded queue, slices in turn, and threads that do them.

::

    run ─▶ queue (bounded; else 429) ─▶ a thread does one slice ─▶ done: answer
                 ▲                                │
                 └──────────── not done ◀─────────┘

A request of one record is one slice, so it waits for one slice of each request before it, however long those are.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trimodal.errors import TooManyRequests
from trimodal.serving.steps import Alone, Steps

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SMOOTHING = 0.2
"""Weight of the newest request in the mean time from one answer to the next."""


class Job(Generic[T]):
    """One request's work and where its result goes.

    Attributes:
        future: the result; belongs to the event loop's thread.
        context: of the request, such as its id for the log.
        dropped: nobody wants the result any more.
    """

    def __init__(self, steps: Steps[T], future: asyncio.Future[T]) -> None:
        self.steps = steps
        self.future = future
        self.dropped = False
        self.context = contextvars.copy_context()

    def resolve(self, result: T) -> None:
        """Hands the result to whoever waits; called from any thread."""
        self._tell(self.future.set_result, result)

    def fail(self, error: Exception) -> None:
        """Hands an error to whoever waits; called from any thread."""
        self._tell(self.future.set_exception, error)

    def _tell(self, action: Callable[[Any], None], value: object) -> None:
        def tell() -> None:
            if not self.future.done():
                action(value)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self.future.get_loop().call_soon_threadsafe(tell)


class Queue:
    """The jobs that are not done, in the order of their next turn; may be used from several threads.

    Attributes:
        capacity: most jobs that are not done, those that are worked on included.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: deque[Job[Any]] = deque()
        self._open = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Counts the jobs that are not done."""
        return self._open

    @property
    def waiting(self) -> int:
        """Counts the jobs that no thread works on."""
        return len(self._waiting)

    def add(self, job: Job[Any]) -> bool:
        """Takes a job; False when there are too many."""
        with self._changed:
            if self._open >= self.capacity or self._closed:
                return False
            self._open += 1
            self._waiting.append(job)
            self._changed.notify()
        return True

    def take(self) -> Job[Any] | None:
        """Waits for a job to do a slice of; None when the queue is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return None if self._closed else self._waiting.popleft()

    def put_back(self, job: Job[Any]) -> None:
        """Gives a job that is not done its next turn, after all others."""
        with self._changed:
            if job.dropped:
                self._open -= 1
                return
            self._waiting.append(job)
            self._changed.notify()

    def done(self) -> None:
        """Counts a job that was taken as done."""
        with self._changed:
            self._open -= 1

    def drop(self, job: Job[Any]) -> None:
        """Gives a job up: at once where it waits, else after the slice that is worked on."""
        with self._changed:
            job.dropped = True
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
                self._open -= 1

    def close(self) -> None:
        """Ends every `take`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Scheduler:
    """Does the work of requests on a few threads.

    Attributes:
        concurrency: requests that are worked on at once.
        queue: the requests that are not answered.
    """

    def __init__(self, concurrency: int, max_waiting: int) -> None:
        """Starts the threads.

        Args:
            concurrency: how many.
            max_waiting: requests that may wait while every thread works.
        """
        self.concurrency = concurrency
        self.queue = Queue(concurrency + max_waiting)
        self._max_waiting = max_waiting
        self._started: dict[int, float] = {}
        self._interval = 0.0
        self._last = 0.0
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"inference-{number}", daemon=True)
            for number in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, make: Callable[[Alone], Steps[T]]) -> T:
        """Does the work of one request; gives it up where the caller is cancelled.

        Args:
            make: makes the work, given what tells whether it is alone.

        Raises:
            TooManyRequests: as many requests wait as may wait.
        """
        job: Job[T] = Job(make(self.alone), asyncio.get_running_loop().create_future())
        if not self.queue.add(job):
            raise self.refusal()
        try:
            return await job.future
        finally:
            if not job.future.done() or job.future.cancelled():
                self.queue.drop(job)

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may wait, so that the next would be refused."""
        return len(self.queue) >= self.queue.capacity

    def refusal(self) -> TooManyRequests:
        """Returns what a request is told that cannot wait."""
        return TooManyRequests(
            f"{self._max_waiting} requests wait, which is MAX_QUEUE_SIZE; try again in {self.patience()} s."
        )

    def alone(self) -> bool:
        """Tells whether at most one request is there, so that it may take every core."""
        return len(self.queue) <= 1

    def patience(self) -> int:
        """Estimates the seconds until what waits now is answered, from the pace of the last answers."""
        return max(1, math.ceil(len(self.queue) * self._interval))

    def oldest_slice(self) -> float | None:
        """Returns when the longest-running slice began (monotonic clock), or None where no thread works."""
        return min(list(self._started.values()), default=None)

    @property
    def alive(self) -> bool:
        """Whether every thread lives."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Ends the threads after the slices that they work on."""
        self.queue.close()

    def _work(self, number: int) -> None:
        while (job := self.queue.take()) is not None:
            self._started[number] = time.monotonic()
            try:
                self._slice(job)
            finally:
                self._started.pop(number, None)

    def _slice(self, job: Job[Any]) -> None:
        try:
            job.context.run(next, job.steps)
        except StopIteration as end:
            self._pace()
            self.queue.done()
            job.resolve(end.value)
        except Exception as err:  # noqa: BLE001  whatever a handler raises belongs to its request
            self.queue.done()
            job.fail(err)
        except BaseException as err:  # noqa: BLE001  a handler that calls sys.exit must not take the thread along
            self.queue.done()
            job.fail(RuntimeError(type(err).__name__))
        else:
            self.queue.put_back(job)

    def _pace(self) -> None:
        now = time.monotonic()
        if self.queue.waiting and self._last:
            self._interval += _SMOOTHING * (now - self._last - self._interval)
        self._last = now
