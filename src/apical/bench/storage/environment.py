"""The environment header of a run: what made its numbers, and nothing about who made them."""

import functools
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from apical.names import __version__

PACKAGES = ("torch", "numpy", "scipy", "torchvision", "timm")
INSTALLED = Path(__file__).resolve().parents[2]
"""The folder of the package `apical`."""


def environment(project: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Versions, git state, machine and threads of this process, as a flat JSON value.

    No host name, no user name and no path: records are meant to be published.
    Args: project: a folder of a git work tree, whose commit is recorded, and in `git_dirty`
        whether tracked files in this folder differ from it. Default: the installed package, in a
        work tree that tracks it (an editable installation); installed by pip from a git address,
        it has the commit that pip has recorded, and no `git_dirty`. Without a commit both keys
        are absent, and the version of `apical` says which release it was.
    Returns: keys `python`, `system`, `apical`, one per installed package of `PACKAGES`, `threads`
        (intra-op threads of torch), `cpu`, `cores` (those this process may use), and where they
        apply `gpu`, `cuda`, `git`, `git_dirty`.
    """
    import torch  # here, so that reading records never loads torch

    header: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "apical": __version__,  # of the code that runs; metadata may be of an older installation
    }
    header |= {name: version for name in PACKAGES if (version := _version(name))}
    header["torch"] = torch.__version__
    header |= {"threads": torch.get_num_threads(), "cpu": _cpu(), "cores": cores()}
    if torch.cuda.is_available():
        header |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return header | (_installed_commit() if project is None else _git(Path(project)))


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    """Model name of the processor; the machine type where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _installed_commit(package: Path = INSTALLED) -> dict[str, Any]:
    # A virtual environment inside somebody's work tree is not tracked by it.
    if _run_git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        return _git(package)
    try:
        installed = metadata.distribution("apical")
    except metadata.PackageNotFoundError:
        return {}
    if Path(str(installed.locate_file("apical"))).resolve() != package:
        return {}  # imported from elsewhere than pip installed it
    source = json.loads(installed.read_text("direct_url.json") or "{}")
    commit = source.get("vcs_info", {}).get("commit_id")
    return {"git": commit} if commit else {}


def _git(folder: Path) -> dict[str, Any]:
    commit = _run_git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"git": commit} | ({} if changes is None else {"git_dirty": bool(changes)})


def _run_git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
