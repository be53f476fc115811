"""What every test shares: one thread, and torchvision where its wheel lacks operators."""

from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also beside a build of torch that its binary operators do not fit.

    Ask for this fixture (or for `vision`, with timm) before naming a net of either library.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # Only declared: no net calls them, but importing looks for them.
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._declared = library  # it lives as long as the module
    return torchvision


@pytest.fixture(scope="session")
def vision(torchvision: ModuleType) -> ModuleType:
    """timm, which imports torchvision."""
    import timm

    return timm
