"""Makes torchvision importable where its compiled operators do not fit the installed torch.

torchvision registers Python implementations for `torchvision::nms` and `torchvision::qnms` while it is imported, and
fails if its binary did not define those two operators: that is so for a CUDA build of torchvision beside a CPU build of
torch. Nothing here calls them, so declaring their schemas is enough for torchvision, and for lpips, torchmetrics and
torch-fidelity, which import it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_definitions: list[torch.library.Library] = []  # a schema is withdrawn with the library object that declared it


def ensure_torchvision_importable() -> None:
    """Call before importing torchvision or anything that imports it; repeating it does nothing.

    Declares only what is missing after torchvision's own binary has had its chance, so a torchvision that fits its
    torch is left as it is. Where torchvision is not installed nothing happens (importing it says so).
    """
    if _definitions or all(map(_is_defined, _SCHEMAS)):
        return
    _load_binary()
    missing = [name for name in _SCHEMAS if not _is_defined(name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in missing:
            library.define(_SCHEMAS[name])  # type: ignore[no-untyped-call]
        _definitions.append(library)


def _is_defined(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _load_binary() -> None:
    """Let torchvision's binary define its operators, as `import torchvision` will do, if it fits this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for binary in sorted(Path(spec.origin).parent.glob("_C.*")):
        try:
            torch.ops.load_library(binary)  # type: ignore[no-untyped-call]
        except OSError:  # built for another torch: its operators stay undefined, which the caller deals with
            return
