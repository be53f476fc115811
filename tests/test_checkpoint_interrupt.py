"""An interrupt while a checkpoint is written waits for it, and stays an interrupt."""

import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from apical.bench.storage import checkpoint


class _Interrupting:
    """A value that sends Ctrl-C to its own process when it is pickled."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return OrderedDict, ()


def test_ctrl_c_inside_the_writer_comes_after_a_whole_file(tmp_path: Path) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    path = tmp_path / "checkpoint.pt"
    state = {"first": torch.ones(3), "value": _Interrupting(), "last": torch.zeros(3)}
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, state, belongs_to={})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(torch.load(path)["state"]["last"], torch.zeros(3))
