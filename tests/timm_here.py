"""timm beside the CPU build of PyTorch, where it is installed (`make .venv-hf/timm`)."""

from importlib.util import find_spec


def make_importable():
    """Lets torchvision be imported without its compiled operations, of which timm uses none.

    Its published wheels are built for CUDA; beside a CPU build its library does not load, and importing it ends at
    two operations that it describes.  They are declared here.
    """
    if not (find_spec("torchvision") and find_spec("torch")):
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(library)  # what it declares ends with it


KEPT: list = []
