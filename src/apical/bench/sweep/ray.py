"""Runs as tasks of a Ray cluster (``pip install apical[ray]``)."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

import ray

from apical.bench.sweep import workers


class RayExecutor(Executor):
    """One task a call, in the cluster of RAY_ADDRESS; without that, in one on this machine.

    Args: remote: runs ``_call`` in the cluster.
    """

    def __init__(self, remote: Any) -> None:
        self.remote, self.tasks = remote, list[Any]()
        self.opened = not ray.is_initialized()
        if self.opened:
            ray.init(log_to_driver=False, include_dashboard=False)

    def submit(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def settle(done: Future[Any]) -> None:
            if error := done.exception():
                future.set_exception(workers.Died.of(error))
            else:
                future.set_result(done.result())

        self.tasks.append(self.remote.remote(os.getcwd(), call, *args, **options))
        self.tasks[-1].future().add_done_callback(settle)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the tasks that are left: a sweep that ended regularly has none."""
        for task in self.tasks:
            ray.cancel(task, force=True)
        if self.opened:
            ray.shutdown()


def _call(folder: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    os.chdir(folder)  # relative paths mean the same as in the process that submits
    return call(*args, **options)


def make(options: Mapping[str, Any]) -> workers.Make:
    """Opens an executor. Args: options: of ``ray.remote`` (``num_cpus``, ``num_gpus``, ...)."""
    # no retries by Ray: the sweep makes them, since it sees what is finished and what proceeds
    remote = ray.remote(**{"num_cpus": 1, **options, "max_retries": 0})(_call)
    return lambda: RayExecutor(remote)
