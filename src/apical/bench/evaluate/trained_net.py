"""Trained nets: in eval mode, for pixels in [0, 1], with the images they are tried on; and their
weights as a file that plain PyTorch loads."""

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from apical import data, nets, rules
from apical.attacks.scores import Normalised
from apical.bench.experiment.experiment import Experiment, to_dict
from apical.bench.experiment.own_code import GIVEN
from apical.bench.experiment.rule_settings import rule_assignment
from apical.bench.storage import checkpoint, records, run_folder, schema
from apical.bench.training import build, resume, splits, starts
from apical.core.convert import convert
from apical.core.layers import feedback_modules
from apical.names import from_path
from apical.nets import pretrained
from apical.retrieval.codes import Codes, ConstantBitWarning, encode
from apical.retrieval.database import Database
from apical.retrieval.ranking import check_k

GIVEN_FILE = "given.json"
"""In a run folder: name, shape, classes and statistics of data that were given as objects."""

CHOICE = 0
"""Seed by which the images are chosen: the same ones for every net."""


@dataclass(frozen=True)
class Trained:
    """A net and what it is tried on.

    Attributes: model: with its normalisation inside. images: its data. digest: short hash of all
        that decides what it computes, forwards and backwards. name: in tables.
    """

    model: nn.Module
    images: data.ImageData
    digest: str
    name: str

    def examples(
        self, count: int, device: str = "cpu", split: data.Images | None = None
    ) -> tuple[Tensor, Tensor]:
        """`count` images of a split, by default the test split (all, where it has fewer), and their
        labels.

        Chosen at random, once: every net of these data gets the same. Shapes: (N, C, H, W), (N,).
        """
        split = self.images.test if split is None else split
        if count < len(split):
            split = data.split_validation(split, count, CHOICE)[1]
        zeros, ones = (0.0,) * self.images.shape[0], (1.0,) * self.images.shape[0]
        batches = data.Batches(split, 500, device=device, mean=zeros, std=ones)
        x, y = zip(*batches.epoch(0), strict=True)
        return torch.cat(x).clamp_(0, 1), torch.cat(y)


@dataclass(frozen=True, eq=False)
class HashNet(Trained):
    """A trained hash net with the database that its codes are searched in.

    Attributes: bits: of its codes. searched: images of the database, in its order. k: of mAP@k,
        None for the whole database.
    """

    bits: int
    searched: data.Batches
    k: int | None

    @cached_property
    def database(self) -> Database:
        """The codes of the images. Of bits that never change whoever trained the net was warned.

        Raises: ValueError for codes that hold NaN, or a k that the database does not hold.
        """
        check_k(self.k, len(self.searched.split))
        codes = [encode(self.model, x).packed for x, _ in self.searched.epoch(0)]
        return _silent(Codes(torch.cat(codes), self.bits), self.searched.split.labels)

    @property
    def feedback(self) -> bool:
        """Whether the net has a gradient of its own, other than the exact one."""
        return any(True for _ in feedback_modules(self.model))

    def known(self, count: int) -> Database:
        """A random part of the database with something of every class, the same for every net of
        these data.

        Raises: ValueError for a count below the number of classes.
        """
        whole, classes = self.database, self.database.labels.unique()
        if count < len(classes):
            raise ValueError(
                f"known={count} codes: there are {len(classes)} classes, of each of which the"
                " attacker needs one"
            )
        generator = torch.Generator().manual_seed(CHOICE)
        order = torch.randperm(len(whole), generator=generator).tolist()
        labels = whole.labels.tolist()
        first = {labels[row]: row for row in reversed(order)}  # of each class the first in order
        chosen = list(dict.fromkeys([*first.values(), *order]))[:count]
        rows = torch.tensor(sorted(chosen))
        return _silent(whole.codes[rows], whole.labels[rows])


class Run(NamedTuple):
    """A finished run.

    Attributes: experiment: its settings. records: its rows, as ``records.jsonl`` has them. model:
        the trained net in eval mode, with its feedback; it takes inputs as in training
        (``experiment.pixels``), where the net of `from_run` takes pixels in [0, 1].
    """

    experiment: Experiment
    records: list[dict[str, Any]]
    model: nn.Module

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"Run({self.experiment!r}, {len(self.records)} records, model {kind})"


def load_run(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    trust: bool = False,
) -> Run:
    """Experiment, records and trained net of a finished run, of images or of sequences.

    Args: path: of the run's folder, or of the checkpoint in it.
        model: a net of the same architecture, where `apical.bench.fit` was given one as an object;
            it is copied.
        data_root, download: where its data set lies, which decides the shape of the net.
        trust: whether to import code outside this library that its settings name, as
            ``my_nets:Net``; only for folders whose author you trust.
    Raises: ValueError if there is no run, it is not finished, this version cannot build it, a file
        of it is damaged, or it names code that is not trusted.
    """
    folder = _folder(Path(path))
    experiment, _, trained = _finished(
        folder, data_root=data_root, download=download, trust=trust, net=model
    )
    return Run(experiment, records.read(folder / "records.jsonl"), trained.to(device))


def from_run(
    path: str | Path,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    trust: bool = False,
) -> Trained:
    """The net of a finished run: a `HashNet` if it learned codes.

    Args: path: of the run's folder, or of the checkpoint in it. trust: as of `load_run`.
    Raises: ValueError as `load_run` does.
    """
    folder = _folder(Path(path))
    experiment, images, model = _finished(
        folder, data_root=data_root, download=download, trust=trust
    )
    if not isinstance(images, data.ImageData):
        raise ValueError(f"{folder} trained on sequences (task={experiment.task!r}), not on images")
    if experiment.data.startswith(GIVEN):
        raise ValueError(
            f"{folder} trained on data that were given as objects, which are not kept: attack its "
            "net in Python (apical.attacks), or train by name (--data my_data:make)"
        )
    if not images.unit:
        raise ValueError(
            f"{folder} trained on data={experiment.data!r}, which are no images in [0, 1]: attacks "
            "need that range. Let the function return uint8 images, or floats in [0, 1]"
        )
    whole = Normalised(model, *splits.normalisation(experiment, images)).to(device)
    net = Trained(whole, images, digest_of_run(folder, trust=trust), folder.name)
    if experiment.hashing is None:
        return net
    unit = dataclasses.replace(experiment, pixels="unit")
    searched = build.database(unit, images, torch.device(device))
    assert searched is not None
    codes = experiment.hashing
    return HashNet(whole, images, net.digest, net.name, codes.bits, searched, codes.k)


def experiment_of(folder: Path, *, trust: bool = False) -> Experiment:
    """The experiment in a run folder. Args: trust: as of `load_run`.

    Raises: ValueError if there is none, or as `run_folder.read` does.
    """
    if not (folder / "experiment.json").exists():
        below = next(folder.rglob("experiment.json"), None)
        example = f", as {below.parent}" if below else ""
        raise ValueError(
            f"{folder} is no run: it has no experiment.json. Give the folder of one{example}. "
            "(apical robustness also takes --model package.module:callable --weights FILE)"
        )
    return run_folder.read(folder, trust=trust)


def export(
    run: str | os.PathLike[str], file: str | os.PathLike[str], *, trust: bool = False
) -> list[str]:
    """Write the weights of a finished run, under the keys of the plain net.

    What rules and learners remember is left out, and no module is put around the net: the file
    loads into `apical.nets.build` with the net's options, or into a class of one's own. The net
    takes inputs as in training: ``load_run(run).experiment.pixels`` says whether they are
    standardised.

    Args: run: its folder, or the checkpoint in it.
        file: ``.safetensors`` (needs safetensors; holds the experiment as metadata) or ``.pt`` (a
            state dict, which loads with ``weights_only=True``).
        trust: as of `load_run`.
    Returns: the keys.
    Raises: ValueError for another ending, a run that is not finished, or safetensors absent.
    """
    target = Path(file)
    if target.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{target}: the name must end in .safetensors or .pt")
    folder = _folder(Path(run))
    experiment = experiment_of(folder, trust=trust)
    _check_finished(folder)
    weights = starts.plain(_weights_of_run(folder, experiment))
    state = {key: value.contiguous().clone() for key, value in weights.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if target.suffix == ".pt":
        torch.save(state, part)
    else:
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise ValueError(
                f"{target}: needs safetensors (pip install safetensors), or give FILE.pt"
            ) from error
        about = {"run": folder.name, "experiment": json.dumps(to_dict(experiment))}
        save_file(state, part, metadata=about)
    part.replace(target)  # a reader never sees half a file
    return list(state)


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
    described = f"model {model} {dict(options or {})} {data_name} {images.shape} {layers}"
    digest = pretrained.digest(whole.state_dict(), told=described)
    return Trained(whole.to(device), images, digest, model.replace(":", "."))


def _folder(path: Path) -> Path:
    if path.is_file():
        return path.parent
    if not path.exists():
        raise ValueError(f"there is no {path}: give a run folder or a checkpoint in one")
    return path


def _finished(
    folder: Path,
    *,
    data_root: str | None,
    download: bool,
    trust: bool,
    net: nn.Module | None = None,
) -> tuple[Experiment, build.Source, nn.Module]:
    """Settings, data and trained net, in eval mode, of a finished run."""
    experiment = experiment_of(folder, trust=trust)
    _check_finished(folder)
    given = build.Given(_shapes(folder), net)
    source = build.load(experiment, data_root=data_root, download=download, given=given)
    with torch.random.fork_rng(devices=[]):
        model = build.build_model(experiment, source, epoch=experiment.epochs, given=given)
    try:
        model.load_state_dict(_weights_of_run(folder, experiment))
    except RuntimeError as error:
        raise ValueError(
            f"{folder / 'checkpoint.pt'} does not fit its experiment: {error}"
        ) from error
    return experiment, source, model.eval()


def _check_finished(folder: Path) -> None:
    state = run_folder.state(folder)
    if state != "finished":
        yet = "" if state == "stopped" else f" yet. apical resume {folder} goes on with it"
        raise ValueError(f"{folder} is {state}: there is no trained net{yet}")


def _shapes(folder: Path) -> data.ImageData | None:
    """What stands for data that were given as objects: their shapes, which decide the net."""
    path = folder / GIVEN_FILE
    if not path.exists():
        return None
    found = records.read_json(path)
    blank = data.TensorSplit(torch.zeros(1, *found["shape"]), torch.zeros(1, dtype=torch.int64))
    channels = len(found["mean"])
    mean, std = (0.0,) * channels, (1.0,) * channels
    return data.ImageData(found["name"], blank, blank, found["num_classes"], mean, std)


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
    resume.check_records(folder, state)
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


def _silent(codes: Codes, labels: torch.Tensor) -> Database:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantBitWarning)
        return Database(codes, labels)
