"""From an experiment to the objects a loop needs: data, net, optimizer, in a fixed order."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import data, nets, optimizers
from .convert import convert
from .experiment import Experiment, rule_assignment
from .switch import check, switch

EVALUATION_BATCH = 500


@dataclass
class Group:
    """The processes that train together under ``torchrun``; one of them without it."""

    rank: int = 0
    size: int = 1
    opened: bool = False  # here, and not by the program that called

    def agree(self, value: bool, device: torch.device) -> bool:
        """Whether the value is true on any process."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Take leave of the others; a process that just ends may abort in its network threads."""
        if self.opened and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@dataclass
class Parts:
    """What one run consists of.

    ``model`` holds weights and feedback; ``net`` is the same, as the loop calls it (compiled,
    distributed).
    """

    model: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    images: data.ImageData
    train: data.Batches
    validation: data.Batches | None
    test: data.Batches
    probe: tuple[Tensor, Tensor] | None
    device: torch.device
    group: Group


def build(
    experiment: Experiment,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
) -> Parts:
    """Build everything an experiment names; consumes the global random numbers of its seed.

    The order is part of the result: weights from the seed, then the conversion, then the
    optimizer, so that feedback which learns by gradients is trained as well.

    Raises: ValueError for any name or value that does not fit, before anything is written.
    """
    where = check_device(device, experiment)
    images = data.load(experiment.data, root=data_root, size=experiment.size, download=download)
    splits = _splits(experiment, images)
    group = join_group(where)
    batches = _batches(experiment, images, splits, where, group)
    torch.manual_seed(experiment.seed)
    model = build_model(experiment, images).to(where)
    probe = _probe_batch(experiment, images, splits[0], where)
    optimizer = optimizers.build(
        experiment.optimizer,
        model.parameters(),
        lr=experiment.lr,
        options=experiment.optimizer_options,
    )
    _check_switches(experiment, model, optimizer, _example(images, where))
    torch.manual_seed(experiment.seed + 1 + group.rank)  # dropout and the like, apart per process
    net = _as_called(experiment, model, group)
    scaler = torch.amp.GradScaler(where.type, enabled=experiment.autocast == "fp16")
    train, validation, test = batches
    return Parts(
        model, net, optimizer, scaler, images, train, validation, test, probe, where, group
    )


def build_model(experiment: Experiment, images: data.ImageData, *, epoch: int = 0) -> nn.Module:
    """The converted net of an experiment on the CPU; its weights use the global generator.

    Args: epoch: epochs finished (>= 0), on which the rule depends where it switches.
    """
    model = nets.build(
        experiment.net,
        in_shape=images.shape,
        num_classes=images.num_classes,
        **experiment.net_options,
    )
    if experiment.init != "net":
        nets.initialise(model, experiment.init)
    if experiment.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rule = rule_assignment(experiment.rule_at(epoch))
    example = _example(images, torch.device("cpu"))
    return convert(model, rule, example=example, seed=experiment.seed)


def follow_switch(experiment: Experiment, parts: Parts, epoch: int) -> bool:
    """Let the rule take over that the experiment names for after this epoch.

    Returns: whether it names one. ``parts.net`` is then another.
    """
    if epoch not in experiment.switch:
        return False
    switch(
        parts.model,
        rule_assignment(experiment.switch[epoch]),
        optimizer=parts.optimizer,
        example=_example(parts.images, parts.device),
        seed=experiment.seed,
    )
    parts.net = _as_called(experiment, parts.model, parts.group)
    return True


def normalisation(
    experiment: Experiment, images: data.ImageData
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What is taken from pixels in [0, 1], and what then divides them, per channel."""
    if experiment.pixels == "unit":
        channels = images.shape[0]
        return (0.0,) * channels, (1.0,) * channels
    return images.mean, images.std


def check_device(device: str, experiment: Experiment) -> torch.device:
    """The device, if this machine has it and can run the experiment on it.

    Raises: ValueError with what is there.
    """
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r}: {reason}. This machine has: {there}") from error
    if experiment.autocast == "fp16" and where.type != "cuda":
        raise ValueError(
            f"autocast='fp16' on {where.type}: float16 gradients underflow without a gradient "
            "scaler, which needs CUDA; use autocast='bf16' here, or --device cuda"
        )
    return where


def join_group(device: torch.device) -> Group:
    """The processes started by ``torchrun`` (gloo on CPU, nccl on CUDA), or one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    opened = not torch.distributed.is_initialized()
    if opened:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), opened)


def _as_called(experiment: Experiment, model: nn.Module, group: Group) -> nn.Module:
    """The model as the loop calls it."""
    net: Any = torch.compile(model) if experiment.compile else model
    return nn.parallel.DistributedDataParallel(net) if group.size > 1 else net


def _example(images: data.ImageData, device: torch.device) -> Tensor:
    return torch.zeros(2, *images.shape, device=device)


def _check_switches(
    experiment: Experiment, model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor
) -> None:
    """What would stop a later switch stops the run before its first step."""
    problems = []
    for epoch, rule in experiment.switch.items():
        try:
            check(
                model,
                rule_assignment(rule),
                optimizer=optimizer,
                example=example,
                seed=experiment.seed,
            )
        except ValueError as error:
            problems.append(f"switch at epoch {epoch}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def _splits(
    experiment: Experiment, images: data.ImageData
) -> tuple[data.Images, data.Images | None]:
    train, validation, wanted = images.train, None, experiment.train_images
    # chosen alike for every seed and rule, so that what is compared is compared on one split
    if experiment.validation:
        train, validation = data.split_validation(train, experiment.validation, 0)
    if wanted is not None and wanted > len(train):
        raise ValueError(f"train_images={wanted}: the training split has {len(train)} images")
    if wanted is not None and wanted < len(train):
        _, train = data.split_validation(train, wanted, 1)
    return train, validation


def _batches(
    experiment: Experiment,
    images: data.ImageData,
    splits: tuple[data.Images, data.Images | None],
    device: torch.device,
    group: Group,
) -> tuple[data.Batches, data.Batches | None, data.Batches]:
    mean, std = normalisation(experiment, images)
    common: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "device": device,
        "channels_last": experiment.channels_last,
    }
    train = data.Batches(
        splits[0],
        experiment.batch_size,
        augment=experiment.augment,
        shuffle_seed=experiment.seed if experiment.shuffle else None,
        drop_last=experiment.drop_last,
        shard=(group.rank, group.size),
        **common,
    )
    if not len(train):
        raise ValueError(
            f"drop_last with batch_size={experiment.batch_size}: the {len(splits[0])} training"
            " images fill no batch; use a smaller batch or drop_last=False"
        )
    validation = None
    if splits[1] is not None:
        validation = data.Batches(splits[1], EVALUATION_BATCH, **common)
    return train, validation, data.Batches(images.test, EVALUATION_BATCH, **common)


def _probe_batch(
    experiment: Experiment, images: data.ImageData, split: data.Images, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The first training images, never augmented or shuffled: the same at every measurement."""
    if not experiment.probe_every:
        return None
    count = min(experiment.probe_images, len(split))
    mean, std = normalisation(experiment, images)
    batches = data.Batches(
        split.take(torch.arange(count)),
        count,
        mean=mean,
        std=std,
        device=device,
        channels_last=experiment.channels_last,
    )
    return next(iter(batches.epoch(0)))
