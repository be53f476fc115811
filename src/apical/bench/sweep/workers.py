"""Executors for runs, in the shape of ``concurrent.futures.Executor``."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

Make = Callable[[], contextlib.AbstractContextManager[Executor]]
"""Opens an executor; leaving the block stops its workers, at once after an exception."""


class Here(Executor):
    """Runs every call at once in this process."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **options))
        except Exception as error:  # as any executor does: the caller of result() gets it
            future.set_exception(error)
        return future


@contextlib.contextmanager
def here() -> Iterator[Executor]:
    """One run after the other in this process."""
    yield Here()


def local(jobs: int) -> Make:
    """Worker processes on this machine. They end with the process that opened them, also when
    that is killed: a run killed at any moment resumes to the same bits."""

    @contextlib.contextmanager
    def make() -> Iterator[Executor]:
        context = multiprocessing.get_context("spawn")
        stop = context.RawValue("b", 0)  # an Event would wait for the answer of a killed worker
        pool = concurrent.futures.ProcessPoolExecutor(
            jobs, context, initializer=_begin, initargs=(os.getpid(), stop)
        )
        try:
            yield pool
        except BaseException:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown(wait=True)

    return make


def _begin(parent: int, stop: Any) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it asks or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while not stop.value and os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
