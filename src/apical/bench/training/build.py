"""From an experiment to the objects a loop needs: data, net, optimizer, in a fixed order."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from apical import data, learners, nets
from apical.bench.experiment import learner_settings, optimizers, task_settings
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.own_code import GIVEN
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.training import objectives, sharding, splits, starts
from apical.bench.training.group import Group, join_group
from apical.bench.training.splits import EVALUATION_BATCH
from apical.core.convert import convert
from apical.core.layers import feedback_modules
from apical.core.switch import check, switch
from apical.data import generators, sequences
from apical.nets import memory, pretrained
from apical.nets.external import check_scores

TEST_SEQUENCES = 10_000
"""Sequences of the test split of a task; like those for validation, alike for all seeds."""

Split = data.Batches | sequences.Stream
Source = data.ImageData | sequences.Task
Splits = tuple[tuple[Split, Split | None, Split], tuple[Tensor, Tensor] | None]
"""Of training, validation and test; and the batch that is measured."""


@dataclass(frozen=True)
class Given:
    """Objects that an experiment names by ``given:`` and their digest.

    Args: images: the data set, None where it has a name of its own.     net: likewise, not
        converted; it is copied.
    """

    images: data.ImageData | None = None
    net: nn.Module | None = None


@dataclass
class Parts:
    """What one run consists of.

    ``model`` holds weights and feedback; ``net`` is the same, as the loop calls it (compiled,
    distributed). Where it is ``sharded`` it is a copy, and ``model`` is as of the last ``gather``.
    """

    model: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    source: Source
    objective: objectives.Objective
    train: Split
    validation: Split | None
    test: Split
    probe: tuple[Tensor, Tensor] | None
    device: torch.device
    group: Group
    sharded: bool = False

    @property
    def trained(self) -> nn.Module:
        """Holds the parameters that the optimizer steps."""
        return self.net if self.sharded else self.model

    @cached_property
    def content(self) -> str:
        """`splits.content` of its splits."""
        return splits.content(self.train, self.validation, self.test)

    def gather(self) -> None:
        """Bring ``model`` up to date on the first process. Every process must call."""
        if self.sharded:
            state = sharding.whole(self.net.state_dict())
            if self.group.rank == 0:
                self.model.load_state_dict(state)


def build(
    experiment: Experiment,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    weights: pretrained.State | None = None,
    given: Given | None = None,
    parallel: str = "ddp",
) -> Parts:
    """Build everything an experiment names; consumes the global random numbers of its seed.

    The order is part of the result: weights from the seed, those of the start, the conversion,
    what the learner remembers, then the optimizer, so that all that learns by gradients is trained.

    Args: weights: of the experiment's start; absent, the net keeps its own, which is enough to
        time it.
        given: what the experiment names as given.
    Raises: ValueError for any name or value that does not fit, before anything is written.
    """
    where = check_device(device, experiment)
    source = load(experiment, data_root=data_root, download=download, given=given)
    group = join_group(where)
    _check_group(experiment, group)
    made: Splits
    if isinstance(source, data.ImageData):
        made = splits.of_images(experiment, source, where, shard=(group.rank, group.size))
    else:
        made = _streams(experiment, source, where)
    (train, validation, test), probe = made
    objective = objectives.build(experiment, train, database(experiment, source, where))
    torch.manual_seed(experiment.seed)  # of CUDA, too
    generators.seed(experiment.seed)
    model = build_model(experiment, source, weights=weights, given=given).to(where)
    sharded = parallel == "fsdp"
    if sharded:
        sharding.check(experiment, model, group.size)
    trained = sharding.shard(model, where) if sharded else model
    lr, rates = experiment.lr, experiment.start.rates
    optimizer = optimizers.build(
        experiment.optimizer,
        pretrained.parameter_groups(trained, lr, rates) if rates else trained.parameters(),
        lr=lr,
        options=experiment.optimizer_options,
    )
    _check_switches(experiment, model, optimizer, _example(source, where))
    _check_learner(experiment, model, train)
    _check_own_loss(experiment, model)
    process_seed = experiment.seed + 1 + group.rank  # of dropout and the like
    torch.manual_seed(process_seed)
    generators.seed(process_seed)
    net = trained if sharded else _as_called(experiment, model, group)
    if sharded and group.rank:
        model.cpu()  # where nothing is measured
    scaler = torch.amp.GradScaler(where.type, enabled=experiment.autocast == "fp16")
    parts = (train, validation, test, probe, where, group)
    return Parts(model, net, optimizer, scaler, source, objective, *parts, sharded)


def load(
    experiment: Experiment,
    *,
    data_root: str | None = None,
    download: bool = True,
    given: Given | None = None,
) -> Source:
    """The data set of an experiment, or its task.

    Raises: ValueError for data that were given as objects, and are not given here.
    Warns: of sequences so short that they are no evidence.
    """
    task = task_settings.task_of(experiment, data_root)
    if task is not None:
        return task
    if experiment.data.startswith(GIVEN):
        if given is None or given.images is None:
            raise ValueError(
                f"data={experiment.data!r} were given to bench.fit as objects: they cannot be "
                "loaded by name. Call bench.fit again; for the command line, write a function that "
                "returns them (--data my_data:make)"
            )
        return given.images
    return data.load(experiment.data, root=data_root, size=experiment.size, download=download)


def build_model(
    experiment: Experiment,
    source: Source,
    *,
    epoch: int = 0,
    weights: pretrained.State | None = None,
    given: Given | None = None,
) -> nn.Module:
    """The converted net of an experiment on the CPU, with what its learner remembers; its weights
    use the global generator.

    Args: source: as of ``load``.
        epoch: epochs finished (>= 0), on which the rule depends where it switches.
        weights, given: as of ``build``.
    """
    model = _net(experiment, source, given)
    if experiment.init != "net":
        nets.initialise(model, experiment.init)
    if experiment.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if experiment.start.source:
        starts.begin(model, experiment.start, weights)
    rule = _assignment(experiment, model, epoch)
    example = _example(source, torch.device("cpu"))
    model = convert(model, rule, example=example, seed=experiment.seed)
    if experiment.start.freeze:
        pretrained.freeze(model, *experiment.start.freeze)
    if experiment.start.train_only:
        pretrained.train_only(model, *experiment.start.train_only)
    if learner_settings.is_default(experiment.learner):
        return model
    return learners.attach(model, experiment.build_learner(), seed=experiment.seed)


def _net(experiment: Experiment, source: Source, given: Given | None = None) -> nn.Module:
    options = experiment.net_options
    if experiment.net.startswith(GIVEN):
        if given is None or given.net is None:
            raise ValueError(
                f"net={experiment.net!r} was given to bench.fit as an object: give a net of the "
                "same architecture here too, as load_run(folder, model=net)"
            )
        net, name = copy.deepcopy(given.net), type(given.net).__name__
    elif isinstance(source, sequences.Task):
        build: Any = nets.build_recurrent
        if experiment.net in memory.NETS:
            build = memory.build
        elif experiment.net in nets.TRANSFORMERS:
            build = nets.build_transformer
        sizes = {"inputs": source.inputs, "outputs": source.outputs, "output": source.answers}
        return build(experiment.net, **sizes, **options)
    else:
        shape, classes = source.shape, outputs(experiment, source)
        net = nets.build(experiment.net, in_shape=shape, num_classes=classes, **options)
        name = experiment.net
    if ":" in experiment.net and isinstance(source, data.ImageData):  # a net of others
        with torch.random.fork_rng(devices=[]):
            check_scores(name, net, source.shape, outputs(experiment, source))
    return net


def outputs(experiment: Experiment, images: data.ImageData) -> int:
    """Outputs of the net: one for each class, or for each bit of a hash code."""
    return images.num_classes if experiment.hashing is None else experiment.hashing.bits


def database(experiment: Experiment, source: Source, device: torch.device) -> data.Batches | None:
    """What hash codes are searched in: the training split less the validation split, in its order;
    None where no codes are learned. ``train_images`` does not make it smaller."""
    if experiment.hashing is None or not isinstance(source, data.ImageData):
        return None
    split = source.train
    if experiment.validation:
        split = data.split_validation(split, experiment.validation, 0)[0]
    return data.Batches(split, EVALUATION_BATCH, **splits.common(experiment, source, device))


def _assignment(experiment: Experiment, model: nn.Module, epoch: int) -> Any:
    """What ``convert`` takes for this net after so many epochs."""
    return starts.assigned(model, experiment.start, experiment.assignment(epoch))


def follow_switch(experiment: Experiment, parts: Parts, epoch: int) -> bool:
    """Let the rule take over that the experiment names for after this epoch.

    Returns: whether it names one. ``parts.net`` is then another.
    """
    if epoch not in experiment.switch:
        return False
    switch(
        parts.model,
        _assignment(experiment, parts.model, epoch),
        optimizer=parts.optimizer,
        example=_example(parts.source, parts.device),
        seed=experiment.seed,
    )
    parts.net = _as_called(experiment, parts.model, parts.group)
    return True


def check_device(device: str, experiment: Experiment) -> torch.device:
    """The device, if this machine has it and can run the experiment on it.

    Raises: ValueError with what is there.
    """
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        # torch's list of all kinds of devices fills the screen
        reason = str(error).splitlines()[0].replace("Expected one of", "\0").partition("\0")[0]
        text = f"device {device!r}: {reason}".rstrip(": ")
        raise ValueError(f"{text}. This machine has: {there}") from error
    if experiment.autocast == "fp16" and where.type != "cuda":
        raise ValueError(
            f"autocast='fp16' on {where.type}: float16 gradients underflow without a gradient "
            "scaler, which needs CUDA; use autocast='bf16' here, or --device cuda"
        )
    return where


def _as_called(experiment: Experiment, model: nn.Module, group: Group) -> nn.Module:
    """The model as the loop calls it."""
    net: Any = torch.compile(model) if experiment.compile else model
    if group.size == 1:
        return net
    absent = _sends_nothing(model)  # DDP would wait for the gradients that stay absent
    return nn.parallel.DistributedDataParallel(net, find_unused_parameters=absent)


def _sends_nothing(model: nn.Module) -> bool:
    """Whether a layer has a rule that leaves gradients below it absent."""
    return any(feedback.rule.sends_nothing for feedback in feedback_modules(model))


def _example(source: Source, device: torch.device) -> Tensor:
    if isinstance(source, sequences.Task):
        return torch.zeros(2, source.length, source.inputs, device=device)
    return torch.zeros(2, *source.shape, device=device)


def _check_group(experiment: Experiment, group: Group) -> None:
    what = "" if experiment.task is None else f"task={experiment.task!r}"
    if experiment.hashing is not None:
        what = "hashing"  # its pairs would be those within each process
    if not learner_settings.is_default(experiment.learner):
        what = f"learner={learner_settings.learner_label(experiment.learner)!r}"
    if what and group.size > 1:
        raise ValueError(f"{what} trains in one process, not in {group.size}: leave out torchrun")


def _check_learner(experiment: Experiment, model: nn.Module, train: Split) -> None:
    """A learner that cannot train this net stops the run before its first step."""
    if learner_settings.is_default(experiment.learner):
        return
    if isinstance(model, nets.OwnLoss) and model.has_own_loss:
        label = learner_settings.learner_label(experiment.learner)
        raise ValueError(
            f"learner={label!r} descends the loss of the task alone, but net={experiment.net!r} "
            "has a loss of its own: leave out the learner, or what gives the net that loss"
        )
    twin = copy.deepcopy(model)
    x, y = next(iter(train.epoch(0)))
    experiment.build_learner().gradients(twin, (x[:2], y[:2]))


def _check_own_loss(experiment: Experiment, model: nn.Module) -> None:
    """A loss that enters below the output layer would train what the rule is to keep."""
    if isinstance(model, nets.OwnLoss) and model.has_own_loss and _sends_nothing(model):
        raise ValueError(
            f"rule={rule_label(experiment.rule)!r} keeps hidden layers as they were, but net="
            f"{experiment.net!r} has a loss of its own that would train them: leave out what gives"
            " the net that loss (net_options: reconstruction)"
        )


def _check_switches(
    experiment: Experiment, model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor
) -> None:
    """What would stop a later switch stops the run before its first step."""
    problems = []
    for epoch in experiment.switch:
        try:
            check(
                model,
                _assignment(experiment, model, epoch),
                optimizer=optimizer,
                example=example,
                seed=experiment.seed,
            )
        except ValueError as error:
            problems.append(f"switch at epoch {epoch}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def _streams(experiment: Experiment, task: sequences.Task, device: torch.device) -> Splits:
    """The same of a task: unrelated streams of sequences."""

    def stream(count: int, size: int, purpose: str, seed: int = 0) -> sequences.Stream:
        return sequences.Stream(task, count, size, seed=seed, purpose=purpose, device=device)

    size, wanted = experiment.batch_size, experiment.validation
    train = stream(experiment.batches * size, size, "train", experiment.seed)
    validation = stream(wanted, EVALUATION_BATCH, "validation") if wanted else None
    test = stream(TEST_SEQUENCES, EVALUATION_BATCH, "test")
    if not experiment.probe_every:
        return (train, validation, test), None
    count = experiment.probe_images
    return (train, validation, test), next(stream(count, count, "probe").epoch(0))


def other_tests(experiment: Experiment, parts: Parts) -> dict[str, sequences.Stream]:
    """Test splits at other lengths than a net was trained at, by the name of their scores."""
    if not isinstance(parts.source, sequences.Task):
        return {}
    others = task_settings.other_lengths(experiment, parts.source)
    return {
        f"test_{length}": sequences.Stream(
            task, TEST_SEQUENCES, EVALUATION_BATCH, seed=0, purpose="test", device=parts.device
        )
        for length, task in others.items()
    }
