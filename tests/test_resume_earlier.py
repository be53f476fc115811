"""Runs that version 0.1.0 began are continued by this version.

`fixtures/runs-0.1.0.zip` holds 22 run folders that version 0.1.0 wrote and that were killed, most
after the first of two epochs, two (brsf, kp) inside it, and in `end.json` the final rows of the
same runs undisturbed under that version. On the machine that wrote them the resumed losses have
the same bits. Another CPU sums in another order: four to eight steps on gradients of size one, each
wrong by some hundred roundings of 6e-8, leave less than 1e-4 of a loss near two.
"""

import json
import math
import zipfile
from pathlib import Path

import pytest
import torch

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import from_dict
from apical.bench.training import loop

ARCHIVE = Path(__file__).parent / "fixtures" / "runs-0.1.0.zip"
with zipfile.ZipFile(ARCHIVE) as archive:
    END = json.loads(archive.read("end.json"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", END)
def test_a_run_of_0_1_0_resumes(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if n.startswith(f"{kind}/")])
    folder = tmp_path / kind
    written = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert written["state"]["position"]["step"] > 0
    written["belongs_to"]["torch"] = str(torch.__version__)  # as if this build had written it
    torch.save(written, folder / "checkpoint.pt")
    stored = json.loads((folder / "experiment.json").read_text())
    experiment = from_dict(stored["experiment"])
    assert experiment.key == stored["key"]
    final = loop.run(experiment, folder, Execution(quiet=True))
    for name, value in END[kind].items():
        if name.endswith("_loss"):
            assert math.isclose(final[name], value, rel_tol=1e-4), (name, final[name], value)
