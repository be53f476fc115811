"""Executors for runs, in the shape of ``concurrent.futures.Executor``."""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from apical.names import unknown

EXECUTORS = ("local", "ray", "slurm")

Make = Callable[[], contextlib.AbstractContextManager[Executor]]
"""Opens an executor; leaving the block stops its workers, at once after an exception."""


class Died(Exception):
    """What ran a call is gone (killed, out of memory, preempted); other calls go on."""

    @classmethod
    def of(cls, error: BaseException) -> "Died":
        """With the first line of the error of an engine, which may have no text at all."""
        return cls((str(error).strip() or type(error).__name__).splitlines()[0])


def choose(
    executor: str | Make, *, jobs: int = 1, options: Mapping[str, Any] | None = None
) -> Make:
    """What opens an executor.

    Args: executor: ``local`` (this process, or as many as ``jobs``), ``slurm``, ``ray``, or what
        opens one of your own.     options: of the engine, by its own names.
    Raises: ValueError for an unknown name, options that do not fit, or an engine that is not
        installed.
    """
    if not isinstance(executor, str):
        return executor
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    options = dict(options or {})
    if executor == "local":
        if options:
            raise ValueError(f"executor 'local' takes no options ({options}); jobs says how many")
        return local(jobs) if jobs > 1 else Here
    try:
        engine = importlib.import_module(f"apical.bench.sweep.{executor}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"executor {executor!r}: {error}; pip install 'apical[{executor}]'"
        ) from error
    try:
        make: Make = engine.make(options)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"executor {executor!r}, options {options}: {error}") from error
    return make


class Here(Executor):
    """Runs every call in this process, when it is submitted."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **options))
        except Exception as error:  # as any executor does: the caller of result() gets it
            future.set_exception(error)
        return future


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
    """In a worker: ignore Ctrl-C, which the parent handles; end when that sets `stop`, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while not stop.value and os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
