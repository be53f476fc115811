"""The built wheel holds the whole package and works from another directory."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
TRAIN_AND_LIST = """
import pathlib, sys
import torch
import apical

assert pathlib.Path(apical.__file__).is_relative_to(sys.prefix), apical.__file__
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
apical.convert(model, "fa")
before = model[0].weight.detach().clone()
model(torch.randn(3, 4)).square().sum().backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
assert not torch.equal(before, model[0].weight)

from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="apical")
sys.exit(command.load()(["list"]))
"""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed; its whole output otherwise."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_whole_and_works_from_another_directory(tmp_path: Path) -> None:
    """In a new environment; all but the package it borrows from the test environment."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("apical-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = (p for p in (SOURCE / "apical").rglob("*") if p.is_file())
    ours = {str(p.relative_to(SOURCE)) for p in package if "__pycache__" not in p.parts}
    assert "apical/py.typed" in ours
    assert ours == {name for name in names if name.startswith("apical/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"apical"}

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    # A path in a .pth file brings the packages there but not their .pth files: no editable apical.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = run(python, "-c", code, cwd=tmp_path)
    Path(purelib.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    listing = run(python, "-W", "error", "-c", TRAIN_AND_LIST, cwd=tmp_path)
    assert {"frsf", "lenet", "digits", "smoke"} <= set(listing.replace(",", " ").split())
    assert "usage: apical" in run(python.with_name("apical"), "--help", cwd=tmp_path)
