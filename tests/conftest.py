"""What every test shares: one thread, and torchvision where its wheel lacks operators."""

import gc
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from browser import Browser, find_browser
from processes import CONTEXT
from torchvision_ops import import_torchvision

torch.set_num_threads(1)
gc.disable()  # until the tests are collected: a quarter of the time that this takes


def pytest_collection_finish() -> None:
    """Modules live as long as the process, which need not look for garbage in them."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end no worker waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a process wrote outlives its end, however it is killed; no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of sweeps begin as copies of this process: they need not import torch."""
    from apical.bench.sweep import workers

    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: CONTEXT)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, for tests of their words: drawing takes nine tenths of the time."""
    from apical.bench.report import render

    monkeypatch.setattr(render, "to_svg", lambda group, panel: "<svg></svg>")
    monkeypatch.setattr(render, "legend_svg", lambda look, label: "<svg></svg>")
    monkeypatch.setattr(render, "write_png", lambda path, group, title: path.write_bytes(b""))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser with one tab; it keeps the size and theme that the last test gave it."""
    executable = find_browser()
    if executable is None and os.environ.get("CI") == "true":
        pytest.fail("CI must have a browser: install chromium")
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed")
    tab = Browser(executable)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also beside a build of torch that its binary operators do not fit.

    Ask for this fixture (or for `vision`, with timm) before naming a net of either library.
    """
    return import_torchvision()


@pytest.fixture(scope="session")
def vision(torchvision: ModuleType) -> ModuleType:
    """timm, which imports torchvision."""
    import timm

    return timm
