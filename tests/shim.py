"""Let torchvision import next to a torch for which its compiled operators were not built."""

import importlib.util
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []


def install_torchvision_shim() -> None:
    """Declare the two operators that torchvision looks up while it is imported.

    Call before the first import of torchvision. Does nothing where torchvision is absent, or where
    its own operators load: they could not be registered a second time.
    """
    spec = importlib.util.find_spec("torchvision")
    if _libraries or spec is None or spec.origin is None or _compiled_operators_load(spec.origin):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)  # the declarations live as long as the library object


def _compiled_operators_load(init_file: str) -> bool:
    try:
        for extension in Path(init_file).parent.glob("_C*.so"):
            torch.ops.load_library(extension)
            return True
    except OSError:
        pass
    return False
