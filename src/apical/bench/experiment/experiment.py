"""An experiment: one training run as a value, its JSON form and its key."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from apical import tasks
from apical.bench.experiment import hashing_settings as codes
from apical.bench.experiment import learner_settings, limits
from apical.bench.experiment.rule_settings import rule_assignment, rule_label, rule_values
from apical.bench.experiment.schedule import Schedule
from apical.core.feedback import FEEDBACK_VERSION
from apical.names import unknown
from apical.starts import Start

VERSION = 1
"""Raised when a change of this library alters what an experiment computes."""

KEY_DIGITS = 10


@dataclass(frozen=True)
class Experiment:
    """One training run: everything that influences its result.

    How it is executed (device, threads, folder) is not part of it: see ``Execution``.

    Args:
        data: name of a data set; ``apical list`` shows them.
        size: side of the images in pixels; absent: as stored.
        train_images: images of the training split that are trained on, the same for every seed
            (>= 1; absent: all). To compare rules where the whole set would take too long.
        validation: images held out of the training split to select by (0: none).
        test: read the test split, once, at the end. Runs that only serve to choose do not.
        test_images: images of it that are read, the same for every net (>= 1; absent: all).
        test_at: epochs, rising, after which it is read as well, to follow a published curve; what
            is seen there decides nothing.
        task: a task of sequences instead of a data set, with a recurrent net; ``apical list`` shows
            them. It has a loss of its own. ``validation`` is then a number of sequences.
        length: steps of its sequences; each task says how many it needs at least.
        task_options: keyword arguments of the task.
        test_lengths: other lengths, rising, at which the trained net is tested as well.
        batches: of sequences in an epoch (>= 1), all drawn anew.
        net: name of a net, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:callable``.
        net_options: keyword arguments of the net.
        pixels: ``standard``: less the mean, over the standard deviation of the data set, per
            channel; ``unit``: in [0, 1].
        init: law of the initial weights: ``net`` keeps what the net comes with, ``xavier`` draws
            them U(+-sqrt(6/(fan_in+fan_out))) with zero biases, as BioTorch does, ``normal`` draws
            weights and biases N(0, 1/(fan_in+fan_out)), ``default`` is PyTorch's law.
        start: trained weights to begin with, what of the net learns, and how fast.
        rule: a rule's name or package.module:Class, its fields ``{"rule": "fa", ...}``, or a
            mapping from layer name patterns to rules, the first match winning.
        learner: what fills the gradients: ``backprop`` is ``loss.backward()``, by the rules of the
            layers; else a learner's name or package.module:Class, or its fields
            ``{"learner": "lra", "reduction": "sum"}``.
        switch: rules that take over later: ``{5: "fa"}`` trains five epochs by ``rule``, then by
            FA. Weights and the state of the optimizer stay (see ``apical.switch``). Epochs
            finished from 1 to ``epochs - 1``, each with a rule as for ``rule``.
        epochs: passes over the training split (>= 1).
        batch_size: images per optimizer step (>= 1), over all processes together.
        shuffle: draw the order of the training images anew for every epoch; else as stored.
        drop_last: leave out the images at the end of an epoch that fill no batch.
        optimizer: sgd, adam, adamw, rmsprop, or a class as ``package.module:Class``.
        lr: learning rate (> 0) before the schedule.
        optimizer_options: further keyword arguments of the optimizer.
        schedule: how the learning rate moves.
        augment: ``flip_crop``: mirror and crop after padding by 4 pixels, as usual for CIFAR;
            ``zoom_flip``: random area and aspect, mirror (image folders only).
        loss: ``cross_entropy`` of a softmax, or ``binary_cross_entropy``: of a sigmoid at each
            output, summed over outputs.
        hashing: learn codes for retrieval in place of class scores, with a loss of its own (see
            ``Hashing``); absent: classes.
        label_smoothing: in [0, 1), training loss only; ``cross_entropy`` only.
        clip_norm: upper limit (> 0) of the norm of all gradients; absent: none.
        accumulate: parts (>= 1) a batch is split into, for memory.
        autocast: ``bf16`` or ``fp16`` (CUDA only, with a gradient scaler).
        compile: run the net through ``torch.compile``.
        channels_last: memory layout of images and convolutions.
        probe_every: epochs between measurements of the layers (0: never).
        probe_images: training images (>= 1) on which gradients are compared.
        probe_share: part of the run's steps, in (0, 1], that measurements may cost; 1 is no limit.
            Where ``probe_every`` would cost more, epochs are left out, the more the later; the
            first and the last are always measured.
        probe_steps: optimizer steps (>= 1, rising) after which layers are measured as well, to
            follow the first epoch, where alignment happens; beside ``probe_share``.
        seed: of weights, feedback, order of images and augmentation (>= 0).
    Raises: ValueError naming every value out of range.
    """

    data: str = "digits"
    size: int | None = None
    train_images: int | None = None
    validation: int = 0
    test: bool = True
    test_images: int | None = None
    test_at: tuple[int, ...] = ()
    task: str | None = None
    length: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    test_lengths: tuple[int, ...] = ()
    batches: int = 100
    net: str = "mlp"
    net_options: dict[str, Any] = field(default_factory=dict)
    pixels: Literal["standard", "unit"] = "standard"
    init: Literal["net", "default", "normal", "xavier"] = "net"
    start: Start = field(default_factory=Start)
    rule: str | dict[str, Any] = "bp"
    learner: str | dict[str, Any] = learner_settings.DEFAULT
    switch: dict[int, str | dict[str, Any]] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 64
    shuffle: bool = True
    drop_last: bool = False
    optimizer: str = "sgd"
    lr: float = 0.05
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Literal["none", "flip_crop", "zoom_flip"] = "none"
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    hashing: codes.Hashing | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    autocast: Literal["off", "bf16", "fp16"] = "off"
    compile: bool = False
    channels_last: bool = False
    probe_every: int = 1
    probe_images: int = 128
    probe_share: float = 0.05
    probe_steps: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_at", tuple(self.test_at))
        object.__setattr__(self, "test_lengths", tuple(self.test_lengths))
        object.__setattr__(self, "probe_steps", tuple(self.probe_steps))
        object.__setattr__(self, "switch", _by_epoch(self.switch))
        if self.task is not None:
            object.__setattr__(self, "task", self.task.replace("-", "_"))
        _raise(
            "experiment",
            [*limits.problems(self), *learner_settings.problems(self), *codes.problems(self)],
        )

    @property
    def before(self) -> "Experiment | None":
        """The experiment whose trained net this one starts from, if it does."""
        return from_dict(self.start.source) if isinstance(self.start.source, dict) else None

    def assignment(self, epoch: int = 0) -> Any:
        """What ``apical.convert`` takes once so many epochs (>= 0) are finished. On trained
        weights, feedback has their norm unless a rule names its scale."""
        return rule_assignment(self.rule_at(epoch), norm=bool(self.start.source))

    def rule_at(self, epoch: int) -> str | dict[str, Any]:
        """The rule in force once so many epochs (>= 0) are finished."""
        return {0: self.rule, **self.switch}[max(e for e in (0, *self.switch) if e <= epoch)]

    @property
    def objective(self) -> str:
        """Name of the loss: the task's own where there is one."""
        if self.hashing is not None:
            return self.hashing.label
        return self.loss if self.task is None else tasks.TASKS[self.task].loss

    @property
    def key(self) -> str:
        """Short hash of all that influences the outcome: the versions, and every field that
        differs from its default. Left-out defaults keep old keys valid when a field is added;
        whoever changes a default raises `VERSION`."""
        norm = bool(self.start.source)
        value = differing(self) | {"rule": rule_values(self.rule, norm=norm), "version": versions()}
        if not learner_settings.is_default(self.learner):
            value["learner"] = learner_settings.learner_values(self.learner)
        else:
            value.pop("learner", None)
        if self.switch:
            rules_of = self.switch.items()
            value["switch"] = [[epoch, rule_values(rule, norm=norm)] for epoch, rule in rules_of]
        if norm:
            value["start"].pop("source")  # what it holds counts, not where it lies
            value["start"].pop("entry", None)
            value["start"]["weights"] = self.before.key if self.before else self.start.digest
            value["start"].pop("digest", None)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """Readable folder name, unique by its key."""
        label = "_then_".join(map(rule_label, (self.rule, *self.switch.values())))
        if not learner_settings.is_default(self.learner):
            learner = learner_settings.learner_label(self.learner)
            label = learner if label == "bp" else f"{label}_{learner}"
        if self.start.source:
            label += "_tuned"
        source = self.data if self.task is None else f"{self.task}_{self.length}"
        if self.hashing is not None:
            source = f"{source}_{self.hashing.label}_{self.hashing.bits}"
        words = (source, self.net, label, f"s{self.seed}", self.key)
        return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain values (lists, not tuples), as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: dict[str, Any]) -> Experiment:
    """The experiment of a JSON object; absent keys take their defaults.

    Raises: ValueError for an unknown key, with the nearest names, or a value out of range.
    """
    values = dict(values)
    if isinstance(values.get("schedule"), dict):
        _known(Schedule, values["schedule"], "schedule")
        values["schedule"] = Schedule(**values["schedule"])
    if isinstance(values.get("start"), dict):
        _known(Start, values["start"], "start")
        values["start"] = Start(**values["start"])
    if isinstance(values.get("hashing"), dict):
        values["hashing"] = codes.from_dict(values["hashing"])
    _known(Experiment, values, "experiment")
    return Experiment(**values)


def differing(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from its defaults, nested ones likewise: for keys."""
    default, result = type(value)(), {}
    for option in dataclasses.fields(value):
        own = getattr(value, option.name)
        if own != getattr(default, option.name):
            result[option.name] = differing(own) if dataclasses.is_dataclass(own) else own
    return result


def versions() -> dict[str, int]:
    """The versions that are part of every key and checkpoint."""
    return {"experiment": VERSION, "feedback": FEEDBACK_VERSION}


def _by_epoch(switch: dict[Any, Any]) -> dict[Any, Any]:
    """In the order of the epochs; JSON has them as text."""
    numbered = {
        int(epoch) if isinstance(epoch, str) and epoch.isdecimal() else epoch: rule
        for epoch, rule in switch.items()
    }
    return dict(sorted(numbered.items(), key=lambda item: str(item[0]).zfill(9)))


def _known(kind: type, values: dict[str, Any], where: str) -> None:
    names = [f.name for f in dataclasses.fields(kind)]
    _raise(where, [str(unknown("key", key, names)) for key in values if key not in names])


def _raise(where: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))
