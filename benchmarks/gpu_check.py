"""Checks of a GPU: every rule compared with the CPU, and the cost of a step; one record.

    python benchmarks/gpu_check.py --out results/gpu_check.json     # under 8 minutes on one GPU
    python benchmarks/gpu_check.py --device cpu --quick             # a test of this script

The reference is float64 on the CPU: the error of a device may be at most ALLOWED times that of the
CPU in the same precision. Times and memory are recorded, without a limit.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.nn.functional as F
from subjects import SUBJECTS, Unavailable, training_step
from torch import Tensor, nn

import apical
from apical import attacks, nets
from apical.bench import Execution, Experiment
from apical.bench.storage.environment import environment
from apical.bench.training import loop
from apical.rules import BP, RULES

ALLOWED = 16
"""Both sides round sums of up to 400 terms, a GPU in another order and, for 3 x 3 kernels, by
transforms (Winograd) whose error is up to ten times that of a direct sum."""
FLOOR = 64 * torch.finfo(torch.float32).eps
"""Relative deviation that is always allowed: float32 parameters are stored to half an eps, in each
of three steps, and a CPU that happens to round well is no standard."""
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS, LR = 3, 0.05
REDRAWN = ("brsf", "redrawn", "wm")
"""Rules that draw on the device after an update: other numbers there, so one step is compared."""

Row = dict[str, Any]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nets.build("lenet", in_shape=(1, 32, 32), num_classes=10)


def batch(device: str, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 32, 32, generator=generator).to(device)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return x, (torch.arange(16) % 10).to(device)


def trained(
    rule: str, device: str, precision: str, *, compiled: str = "", channels_last: bool = False
) -> dict[str, Tensor]:
    """What a few steps make of the floating point numbers of the net, in float64 on the CPU."""
    double = precision == "float64"
    x, y = batch(device, channels_last)
    model = small_net().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    apical.convert(model, RULES[rule], example=x[:2])
    model, x = (model.double(), x.double()) if double else (model, x)
    called = torch.compile(model, backend=compiled) if compiled else model
    dtype = PRECISIONS.get(precision)
    scaler = torch.amp.GradScaler(
        torch.device(device).type, init_scale=2.0**10, enabled=precision == "fp16"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for _ in range(1 if rule in REDRAWN else STEPS):
        optimizer.zero_grad()
        with apical.labels(model, y):
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(called(x), y)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        apical.learn(model)
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    if rule in REDRAWN:
        state = {k: v for k, v in state.items() if ".feedback." not in k}
    return {key: value.detach().cpu().double() for key, value in state.items()}


def deviation(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of what is exact, over all tensors."""
    assert found.keys() == exact.keys()
    apart = sum(float((found[k] - exact[k]).square().sum()) for k in exact)
    return float((apart / sum(float(v.square().sum()) for v in exact.values())) ** 0.5)


def judged(check: str, name: str, found: float, cpu: float) -> Row:
    limit = ALLOWED * cpu + FLOOR
    return {"check": check, "name": name, "deviation": found, "cpu_deviation": cpu,
            "limit": limit, "passed": found <= limit}  # fmt: skip


def rules_check(device: str, quick: bool) -> Iterator[Row]:
    """Every rule, in every precision, and its feedback before training, to the bit."""
    for rule in RULES:
        exact = trained(rule, "cpu", "float64")
        for precision in list(PRECISIONS)[: 1 if quick else None]:
            found, cpu = (
                deviation(trained(rule, place, precision), exact) for place in (device, "cpu")
            )
            yield judged(f"three steps, {precision}", rule, found, cpu)
        there = apical.convert(small_net().to(device), RULES[rule], example=batch(device)[0][:2])
        here = apical.convert(small_net(), RULES[rule], example=batch("cpu")[0][:2])
        moved = {k: v.cpu() for k, v in there.state_dict().items() if ".feedback." in k}
        same = all(torch.equal(value, here.state_dict()[key]) for key, value in moved.items())
        yield {"check": "feedback to the bit", "name": rule, "tensors": len(moved), "passed": same}


def modes_check(device: str, quick: bool) -> Iterator[Row]:
    """torch.compile and channels_last against the same net without them."""
    for rule in ("bp", "fa", "dfa"):
        exact, cpu = trained(rule, "cpu", "float64"), trained(rule, "cpu", "float32")
        off = deviation(cpu, exact)
        backend = "aot_eager" if quick else "inductor"
        found = deviation(trained(rule, device, "float32", compiled=backend), exact)
        yield judged(f"compile ({backend})", rule, found, off)
        found = deviation(trained(rule, device, "float32", channels_last=True), exact)
        yield judged("channels_last", rule, found, off)


def pgd_check(device: str, quick: bool) -> Iterator[Row]:
    """PGD from one start: points of the device and the CPU, and the time of a step."""
    model = apical.convert(small_net(), "fa", example=batch("cpu")[0][:2]).eval()
    attack = attacks.PGD(eps=0.1, steps=2 if quick else 20, random_start=False)
    x, y = batch("cpu")
    x = x.sigmoid()
    here = attack(model, x, y, gradient="exact")
    there_model, there_x, there_y = copy.deepcopy(model).to(device), x.to(device), y.to(device)
    seconds = timed(lambda: attack(there_model, there_x, there_y, gradient="exact"), device, 3)
    there = attack(there_model, there_x, there_y, gradient="exact").cpu()
    # a step is the sign of a gradient: rounding flips it only where the gradient is almost 0
    share = float(((here - there).abs() < 1e-6).double().mean())
    yield {"check": "PGD", "name": f"{attack.steps} steps", "same_pixels": share,
           "step_ms": 1000 * seconds / attack.steps, "passed": share >= 0.99}  # fmt: skip


def resume_check(device: str, quick: bool) -> Iterator[Row]:
    """A LeNet run begun on the CPU: resumed on the device it is refused, or right."""
    experiment = Experiment(
        data="digits", size=32, net="lenet", rule="fa", epochs=2, batch_size=256, probe_every=0
    )
    with tempfile.TemporaryDirectory() as scratch:
        whole = loop.run(experiment, Path(scratch) / "whole", Execution(quiet=True))
        folder = Path(scratch) / "run"
        original = loop._final_rows

        def interrupt(*args: Any) -> Any:
            raise KeyboardInterrupt

        loop._final_rows = interrupt
        try:
            loop.run(experiment, folder, Execution(quiet=True))
        except KeyboardInterrupt:
            pass
        finally:
            loop._final_rows = original
        try:
            row = loop.run(experiment, folder, Execution(device=device, quiet=True))
            how = "the same test loss" if row["test_loss"] == whole["test_loss"] else "another loss"
        except ValueError as error:
            how = "refused" if "device" in str(error) else str(error)
        yield {"check": "resumed across devices", "name": f"cpu to {device}", "how": how,
               "passed": how in ("refused", "the same test loss")}  # fmt: skip


def costs(device: str, quick: bool) -> Iterator[Row]:
    """Step time and peak memory over backprop, of the nets of the speed table; not judged."""
    for subject in SUBJECTS.values():
        subject = subject.small() if quick else subject
        if quick and subject.name not in ("lenet", "mlp"):
            continue
        try:
            measured = {}
            for name in (
                "bp",
                "bp (control)",
                *(("fa",) if quick else ("fa", "brsf", "kp", "dfa")),
            ):
                rule = RULES.get(name, BP())
                layout = subject.channels_last
                model = subject.model(rule, channels_last=layout).to(device)
                x, y = (tensor.to(device) for tensor in subject.batch(layout))
                step = training_step(model, x, y)
                seconds = timed(step, device, 3 if quick else 30)
                measured[name] = seconds, peak_bytes(step, device)
        except Unavailable as error:
            yield {"check": "cost", "name": subject.name, "skipped": str(error), "passed": True}
            continue
        base, memory = measured["bp"]
        for name, (seconds, peak) in measured.items():
            row = {"check": "cost", "name": f"{subject.name}, {name}", "passed": True}
            row |= {"step_ms": 1000 * seconds, "ratio": seconds / base}
            yield row | {"extra_bytes": peak - memory}


def timed(call: Callable[[], Any], device: str, times: int) -> float:
    """Median seconds of a call, after two to warm up."""
    seconds = []
    for number in range(times + 2):
        synchronise(device)
        begin = time.perf_counter()
        call()
        synchronise(device)
        seconds += [time.perf_counter() - begin] * (number >= 2)
    return sorted(seconds)[len(seconds) // 2]


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Most memory that tensors held on the device during a call; 0 on the CPU."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


CHECKS = (rules_check, modes_check, pgd_check, resume_check, costs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="float32 only, small batches")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: this machine has no GPU; --device cpu --quick")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    begin = time.monotonic()
    rows: list[Row] = []
    for check in CHECKS:
        for row in check(options.device, options.quick):
            rows.append(row)
            print("ok  " if row["passed"] else "FAIL", json.dumps(row), flush=True)
    failed = sum(not row["passed"] for row in rows)
    gpu = options.device.startswith("cuda")
    record = {
        "environment": environment(Path(__file__).resolve().parents[1]),
        "device": torch.cuda.get_device_name(options.device) if gpu else options.device,
        "quick": options.quick,
        "seconds": round(time.monotonic() - begin, 1),
        "failed": failed,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(rows)} checks in {record['seconds']} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
