"""The built wheel holds the whole package and works from another directory."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
TRAIN_ONE_STEP = """
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
print("moved" if not torch.equal(before, model[0].weight) else "stuck")
"""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed; its whole output otherwise."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("apical-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; all else it borrows from the test environment."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run(*pip, "--no-deps", wheel, cwd=venv.parent)
    # A path in a .pth file brings the packages there but not their .pth files: no editable apical.
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv.parent
    )
    Path(purelib.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = (p for p in (SOURCE / "apical").rglob("*") if p.is_file())
    ours = {str(p.relative_to(SOURCE)) for p in package if "__pycache__" not in p.parts}
    assert "apical/py.typed" in ours
    assert ours == {name for name in names if name.startswith("apical/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"apical"}


def test_a_model_learns_from_another_directory(python: Path, tmp_path: Path) -> None:
    assert run(python, "-W", "error", "-c", TRAIN_ONE_STEP, cwd=tmp_path).strip() == "moved"


@pytest.mark.parametrize("verb", ["", "train", "study"])
def test_the_command_explains_itself(python: Path, tmp_path: Path, verb: str) -> None:
    command = [python.with_name("apical"), *verb.split(), "--help"]
    assert "usage: apical" in run(*command, cwd=tmp_path)


def test_the_command_lists_what_there_is(python: Path, tmp_path: Path) -> None:
    listing = run(python.with_name("apical"), "list", cwd=tmp_path)
    assert {"frsf", "lenet", "digits", "smoke"} <= set(listing.replace(",", " ").split())
