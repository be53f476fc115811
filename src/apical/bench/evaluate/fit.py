"""Train a model of one's own on data of one's own, without a loop and without names."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from apical import data
from apical.bench.evaluate import trained_net
from apical.bench.experiment import own_code, rates
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.own_code import GIVEN
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.storage import records
from apical.bench.training import loop
from apical.bench.training.build import Given
from apical.core.layers import feedback_modules
from apical.data import generators
from apical.names import takes, unknown


@dataclass(frozen=True, eq=False)
class Fit:
    """A model that was trained by `fit`.

    Attributes: experiment: its settings. folder: of the run. end: the row that closes the run, of
        kind ``final``, or ``stopped`` where it diverged. model: the trained copy of the model, in
        eval mode and with its feedback (``apical.revert`` removes it); None where it diverged.
    """

    experiment: Experiment
    folder: Path
    end: dict[str, Any]
    model: nn.Module | None

    @property
    def accuracy(self) -> float | None:
        """On the test split, in [0, 1]; None where the run diverged."""
        return self.end.get("test_acc")

    @property
    def records(self) -> list[dict[str, Any]]:
        """All rows of the run: losses by epoch, angles and norms by layer, warnings."""
        return records.read(self.folder / "records.jsonl")

    def report(self) -> Path:
        """Write the page of the run. Returns: the HTML file."""
        from apical.bench.report.page import write

        return write(self.folder)

    def __repr__(self) -> str:
        label, epochs = rule_label(self.experiment.rule), self.experiment.epochs
        text = f"{label}, {epochs} epochs, lr {self.experiment.lr:g}"
        if self.model is None:
            text += f": diverged in epoch {self.end['epoch']}, a smaller lr may help"
        elif self.accuracy is not None:
            text += f": test accuracy {self.accuracy:.2%} (n = {self.end['test_count']:,})"
        return f"Fit({text}; {self.folder})"


def fit(
    model: nn.Module | Callable[[], nn.Module] | str,
    train: Any,
    test: Any,
    *,
    rule: str | dict[str, Any] = "bp",
    epochs: int = 10,
    lr: float | None = None,
    optimizer: str | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    **settings: Any,
) -> Fit:
    """Train a copy of a model by a rule, as `apical.bench.run` trains an experiment: it is recorded
    in a folder, resumes where a kill stopped it, and is not repeated where nothing changed.

    Args:
        model: a module, whose weights are where training begins and which stays as it is; a
            function without arguments that makes one, with initial weights by ``seed``; or the
            name of a net of `apical.nets`.
        train, test: each (inputs, labels) as tensors or arrays, a Dataset, or a DataLoader; see
            `apical.data.from_splits`. A loader's batch size and order are used.
        rule: name of a rule, its fields, or rules by patterns of layers, as of an `Experiment`.
        epochs: passes over the training split (>= 1).
        lr, optimizer: learning rate (> 0) and name of the optimizer. Without both: Adam at 0.001;
            a rate alone: SGD; an optimizer alone: its default (`rates.default`).
        seed: of feedback, order of the data, and weights that are made here (>= 0).
        folder: of the run; absent: ``runs/fit/NET-RULE-sSEED-KEY``, whose key stands for
            settings, data and weights.
        settings: any other field of an `Experiment`: ``batch_size=128``, ``validation=1000``,
            ``probe_every=1``, ``optimizer_options={"momentum": 0.9}``, ...
    Returns: accuracy, records, report and the trained model. A run that diverges is a result too.
    Raises: ValueError for data, a model or settings that do not fit, saying what is allowed.
    """
    allowed = {each.name for each in fields(Experiment)} - {"data", "net"}
    for name in settings:
        if name not in allowed:
            raise unknown("setting of fit", name, allowed)
    images = data.from_splits(train, test)
    settings = {**images.loader, **settings}
    net, name = _net(model, seed)
    named = {"data": images.name, "net": name, "rule": rule}
    settings |= {**named, "epochs": epochs, "lr": lr, "optimizer": optimizer, "seed": seed}
    experiment = Experiment(**rates.filled(settings))
    _, word, *rest = experiment.name.split("-")  # the data, the net, rule, seed, key
    kind = word if net is None else type(net).__name__
    place = Path("runs", "fit", "-".join([kind, *rest])) if folder is None else Path(folder)
    given = Given(replace(images, loader={}), net)
    execution = execution or Execution()
    end = loop.run(experiment, place, execution, given=given)
    about = {"name": images.name, "shape": list(images.shape), "num_classes": images.num_classes}
    about["net"] = kind
    statistics = {"mean": list(images.mean), "std": list(images.std)}
    records.write_json(place / trained_net.GIVEN_FILE, about | statistics)
    if end["kind"] != "final":
        return Fit(experiment, place, end, None)
    found = trained_net.load_run(place, model=net, device=execution.device)
    return Fit(experiment, place, end, found.model)


def _net(model: Any, seed: int) -> tuple[nn.Module | None, str]:
    """The net as an object, None for one that goes by its name, and its name in the experiment:
    one for all seeds of a function, so that reports compare them."""
    if isinstance(model, str):
        return None, model
    named = model
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise ValueError(
                f"fit: model is a {type(model).__name__}: give a torch.nn.Module, a function that "
                "makes one, or the name of a net"
            )
        if not takes(model):
            raise ValueError(
                f"fit: {getattr(model, '__name__', 'model')}() needs arguments: give the module "
                "that it makes, or a function without arguments that calls it"
            )
        with generators.kept():
            generators.seed(0)
            named = model()
            generators.seed(seed)
            model = model()
        if not isinstance(model, nn.Module):
            raise ValueError(f"fit: model() returned a {type(model).__name__}, no torch.nn.Module")
    if any(True for _ in feedback_modules(model)):
        raise ValueError(
            "fit: the model is converted already: give the plain one (apical.revert(model)) and "
            "name the rule, rule='fa'"
        )
    return model, GIVEN + own_code.digest_of(named)
