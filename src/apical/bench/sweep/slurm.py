"""Runs as jobs of a Slurm cluster, through submitit (``pip install apical[slurm]``)."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

import submitit

from apical.bench.sweep import workers


class Resumable(submitit.helpers.Checkpointable):
    """A call that is queued again when its job is preempted or reaches its time limit."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class SlurmExecutor(Executor):
    """One job a call. Args: inner: the executor of submitit that queues the jobs."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.jobs = inner, list[tuple[Any, Future[Any]]]()
        self.closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((self.inner.submit(Resumable(call), *args, **options), future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel the jobs that are left: a sweep that ended regularly has none."""
        self.closed.set()
        for job, _ in self.jobs:
            job.cancel(check=False)

    def _watch(self) -> None:
        while not self.closed.wait(1.0):
            for job, future in [entry for entry in self.jobs if entry[0].done()]:
                self.jobs.remove((job, future))
                try:
                    future.set_result(job.result())
                except Exception as error:  # of submitit: the job left no result
                    future.set_exception(workers.Died.of(error))


def make(options: Mapping[str, Any]) -> workers.Make:
    """Opens an executor. Args: options: of submitit's ``update_parameters`` (partition, time,
    GPUs), its ``cluster``, and ``folder``, which takes the files of the jobs (``slurm-jobs``)."""
    given = {"name": "apical", "timeout_min": 240, **options}
    folder, cluster = given.pop("folder", "slurm-jobs"), given.pop("cluster", "slurm")
    inner = submitit.AutoExecutor(folder, cluster)
    inner.update_parameters(**given)
    return lambda: SlurmExecutor(inner)
