"""Records of a run for TensorBoard, Weights & Biases or MLflow: ``pip install apical[track]``.

The records in the run folder are authoritative. A run that is resumed is tracked from its first row
on, as a new run of the tracker (TensorBoard: in the place of the old one).
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, to_dict

Log = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name, and the optimizer step that they belong to."""


def check(tracker: str) -> None:
    """Raises: ValueError for a tracker that is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"track={tracker!r} is not installed: pip install 'apical[track]'")


@contextlib.contextmanager
def track(
    experiment: Experiment, folder: Path, execution: Execution, steps_per_epoch: int
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Give a function that takes new rows of the records."""
    if execution.track == "none":
        yield lambda rows: None
        return
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(TRACKERS[execution.track](experiment, folder))

        def take(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                step = row.get("step", round(row.get("epoch", 0) * steps_per_epoch))
                if numbers := _numbers(row):
                    log(numbers, step)

        yield take


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """``epoch/train_loss``, ``final/test_acc``, ``layer/angle_deg/conv1``."""
    skipped = ("epoch", "step", "t", "seed")
    place = f"/{row['layer']}" if "layer" in row else ""
    return {
        f"{row['kind']}/{name}{place}": float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in skipped
    }


@contextlib.contextmanager
def _tensorboard(experiment: Experiment, folder: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with contextlib.closing(SummaryWriter(str(folder / "tensorboard"))) as writer:

        def log(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextlib.contextmanager
def _wandb(experiment: Experiment, folder: Path) -> Iterator[Log]:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "apical"),
        mode=os.environ.get("WANDB_MODE", "offline"),
        dir=str(folder),
        name=experiment.name,
        group=experiment.key,
        config=to_dict(experiment),
    )
    try:
        yield lambda numbers, step: run.log(dict(numbers), step=step)
    finally:
        run.finish()


@contextlib.contextmanager
def _mlflow(experiment: Experiment, folder: Path) -> Iterator[Log]:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{(folder.parent / 'mlflow.db').resolve()}")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "apical"))
    with mlflow.start_run(run_name=experiment.name, tags={"key": experiment.key}):
        mlflow.log_params({name: str(value)[:500] for name, value in to_dict(experiment).items()})
        yield lambda numbers, step: mlflow.log_metrics(
            {name.replace(":", "_"): value for name, value in numbers.items()}, step=step
        )


TRACKERS: dict[str, Callable[[Experiment, Path], contextlib.AbstractContextManager[Log]]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
