"""Objects of the user's own packages, named as ``package.module:Name``."""

import importlib
import os
import sys
from typing import Any


def from_path(path: str, what: str) -> Any:
    """Import what a path names; the current folder is searched too, as with ``python -m``.

    Args: path: ``package.module:Name`` (dots within Name allowed) or ``package.module.Name``.
        what: the kind of object, for the error.
    Raises: ValueError saying which part does not exist.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{what} {path!r}: write it as package.module:Name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {path!r}: no module {error.name!r} to import; is its package installed, or "
            "does it lie in the current folder?"
        ) from error
    except ImportError as error:
        raise ValueError(f"{what} {path!r}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {path!r}: {found.__name__!r} has no {part!r}")
        found = getattr(found, part)
    return found
