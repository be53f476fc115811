"""torchvision beside a build of torch that its compiled operators do not fit (CPU machines)."""

from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """torchvision; where its two operators are missing they are declared first.

    Only declared: no net calls them, but importing looks for them. For tests alone: the library
    says what is wrong with the installation instead.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._declared = library  # it lives as long as the module
    return torchvision
