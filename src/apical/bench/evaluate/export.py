"""Weights of a trained net as a file that plain PyTorch loads."""

import json
import os
from pathlib import Path

import torch

from apical.bench.evaluate import trained_net
from apical.bench.experiment.experiment import to_dict
from apical.bench.training.pretraining import plain


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
    folder, experiment, weights = trained_net.weights_of(run, trust=trust)
    state = {key: value.contiguous().clone() for key, value in plain(weights).items()}
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
