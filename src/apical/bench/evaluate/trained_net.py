"""Trained nets as an attacker meets them: in eval mode, for pixels in [0, 1], with their images."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from apical import data, nets, rules
from apical.attacks import Normalised
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.rule_settings import rule_assignment
from apical.bench.storage import checkpoint, records, run_folder, schema
from apical.bench.training import build, splits
from apical.core.convert import convert, feedback_modules
from apical.names import from_path
from apical.nets import pretrained

CHOICE = 0
"""Seed by which the images are chosen: the same ones for every net."""


@dataclass(frozen=True)
class Trained:
    """A net and what it is tried on.

    Attributes: model: with its normalisation inside. images: its data. digest: short hash of all
        that decides what it computes, forwards and backwards. name: in tables. bits: of the hash
        codes that it gives; None for scores of classes.
    """

    model: nn.Module
    images: data.ImageData
    digest: str
    name: str
    bits: int | None = None

    def examples(self, count: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """`count` images of the test split (all, where it has fewer) and their labels.

        Chosen at random, once: every net of these data gets the same. Shapes: (N, C, H, W), (N,).
        """
        split = self.images.test
        if count < len(split):
            split = data.split_validation(split, count, CHOICE)[1]
        channels = self.images.shape[0]
        unit: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        batches = data.Batches(split, 500, device=device, **unit)
        x, y = zip(*batches.epoch(0), strict=True)
        return torch.cat(x).clamp_(0, 1), torch.cat(y)


class Run(NamedTuple):
    """A finished run.

    Attributes: experiment: its settings. records: its rows, as ``records.jsonl`` has them. model:
        the trained net in eval mode, with its feedback; it takes inputs as in training
        (``experiment.pixels``), where the net of `from_run` takes pixels in [0, 1].
    """

    experiment: Experiment
    records: list[dict[str, Any]]
    model: nn.Module


def load_run(
    path: str | Path,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    trust: bool = False,
) -> Run:
    """Experiment, records and trained net of a finished run, of images or of sequences.

    Args: path: of the run's folder, or of the checkpoint in it.
        data_root, download: where its data set lies, which decides the shape of the net.
        trust: whether to import code outside this library that its settings name, as
            ``my_nets:Net``; only for folders whose author you trust.
    Raises: ValueError if there is no run, it is not finished, this version cannot build it, a file
        of it is damaged, or it names code that is not trusted.
    """
    folder = _folder(Path(path))
    experiment, _, model = _finished(folder, data_root=data_root, download=download, trust=trust)
    return Run(experiment, records.read(folder / "records.jsonl"), model.to(device))


def from_run(
    path: str | Path,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    trust: bool = False,
) -> Trained:
    """The net of a finished run.

    Args: path: of the run's folder, or of the checkpoint in it. trust: as of `load_run`.
    Raises: ValueError as `load_run` does.
    """
    folder = _folder(Path(path))
    found = _finished(folder, data_root=data_root, download=download, trust=trust)
    experiment, images, model = found
    if not isinstance(images, data.ImageData):
        raise ValueError(f"{folder} trained on sequences (task={experiment.task!r}), not on images")
    whole = Normalised(model, *splits.normalisation(experiment, images))
    bits = None if experiment.hashing is None else experiment.hashing.bits
    digest = digest_of_run(folder, trust=trust)
    return Trained(whole.to(device), images, digest, folder.name, bits)


def experiment_of(folder: Path, *, trust: bool = False) -> Experiment:
    """The experiment in a run folder. Args: trust: as of `load_run`.

    Raises: ValueError if there is none, or as `run_folder.read` does.
    """
    described = folder / "experiment.json"
    if not described.exists():
        raise ValueError(
            f"{folder} is no run: it has no experiment.json. Give the folder that `apical train` "
            "printed, or a model of your own: --model package.module:callable --weights FILE"
        )
    return run_folder.read(folder, trust=trust)


def digest_of_run(folder: Path, *, trust: bool = False) -> str:
    """The digest of a finished run's net, without building it."""
    experiment = experiment_of(folder, trust=trust)
    return pretrained.digest(_weights_of_run(folder, experiment), told=f"run {experiment.key}")


def from_model(
    model: str,
    *,
    weights: str | Path | None,
    data_name: str,
    size: int | None = None,
    pixels: Literal["standard", "unit"] = "standard",
    rule: str | dict[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
) -> Trained:
    """Any PyTorch classifier, made by Apical or not.

    Args:
        model: `package.module:name` of a module or of a callable that makes one, `timm:NAME`,
            `torchvision:NAME`, or a name of `nets.NETS`.
        weights: what `pretrained.load` takes, as the file of its state dict; None: as it comes.
        data_name, size: of the images.
        pixels: what it takes: "standard", less the mean and over the standard deviation of the
            data, or "unit", in [0, 1] (a model that normalises by itself).
        rule: it was converted by; None: not converted.
        options: keyword arguments of the callable.

    Raises: ValueError naming what cannot be built or loaded.
    """
    images = data.load(data_name, root=data_root, size=size, download=download)
    made = _built(model, images, dict(options or {}))
    if rule is not None:
        made = convert(made, rule_assignment(rule), example=torch.zeros(2, *images.shape))
    if weights is not None:
        pretrained.load(made, weights)
    experiment = Experiment(data=data_name, size=size, pixels=pixels)
    whole = Normalised(made.eval(), *splits.normalisation(experiment, images))
    layers = [(f.layer, rules.spell(f.rule)) for f in feedback_modules(made)]
    told = f"model {model} {dict(options or {})} {data_name} {images.shape} {layers}"
    digest = pretrained.digest(whole.state_dict(), told=told)
    return Trained(whole.to(device), images, digest, model.replace(":", "."))


def _folder(path: Path) -> Path:
    if path.is_file():
        return path.parent
    if not path.exists():
        raise ValueError(f"there is no {path}: give a run folder or a checkpoint in one")
    return path


def _finished(
    folder: Path, *, data_root: str | None, download: bool, trust: bool
) -> tuple[Experiment, build.Source, nn.Module]:
    """Settings, data and trained net, in eval mode, of a finished run."""
    experiment = experiment_of(folder, trust=trust)
    state = run_folder.state(folder)
    if state != "finished":
        raise ValueError(
            f"{folder} is {state}: there is no trained net yet. The command that started it "
            "goes on where it stopped"
        )
    source = build.load(experiment, data_root=data_root, download=download)
    with torch.random.fork_rng(devices=[]):
        model = build.build_model(experiment, source, epoch=experiment.epochs)
    try:
        model.load_state_dict(_weights_of_run(folder, experiment))
    except RuntimeError as error:
        raise ValueError(
            f"{folder / 'checkpoint.pt'} does not fit its experiment: {error}"
        ) from error
    return experiment, source, model.eval()


def _weights_of_run(folder: Path, experiment: Experiment) -> dict[str, Tensor]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        raise ValueError(
            f"{folder} has no checkpoint.pt: records were kept without weights. Run the same "
            "experiment again to have them"
        )
    state, belongs_to = checkpoint.read(path)
    if belongs_to.get("experiment") != experiment.key:
        raise ValueError(
            f"{path} belongs to the experiment {belongs_to.get('experiment')}, experiment.json "
            f"describes {experiment.key}"
        )
    schema.check(state, {"model": {str: Tensor}}, str(path))
    return state["model"]


def _built(model: str, images: data.ImageData, options: dict[str, Any]) -> nn.Module:
    source = model.partition(":")[0]
    if ":" in model and source not in ("timm", "torchvision"):
        found = from_path(model, "model")
        if isinstance(found, nn.Module):
            if options:
                raise ValueError(f"model {model!r} is a module already: options have no effect")
            return copy.deepcopy(found)
    return nets.build(model, in_shape=images.shape, num_classes=images.num_classes, **options)
