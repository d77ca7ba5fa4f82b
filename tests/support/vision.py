"""torchvision and Cosmos' guardrail for processes that need them, beside a torch that PyPI's torchvision is not for.

`requirements-vision.txt` is installed into a folder of its own: importing diffusers would fail with it on the path
unless its operators are declared first.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

VISION = f"{sys.prefix}/vision"
COSMOS = (
    "pipeline_cosmos_text2world",
    "pipeline_cosmos_video2world",
    "pipeline_cosmos2_text2image",
    "pipeline_cosmos2_video2world",
    "pipeline_cosmos2_5_predict",
    "pipeline_cosmos2_5_transfer",
)


def add_torchvision() -> None:
    """Before transformers and diffusers are imported: they look for it once."""
    import torch

    sys.path.append(VISION)
    # Of the operators that its extension would bring, those that it decorates as it is imported. None is called here.
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class GuardrailStandIn:
    """Instead of `cosmos_guardrail`, whose weights lie on the hub: it lets everything through."""

    def to(self, device: Any) -> None:
        pass

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def stand_in_for_guardrail() -> None:
    """Have Cosmos' pipelines make a stand-in where they would make the guardrail."""
    for name in COSMOS:
        module: Any = importlib.import_module(f"diffusers.pipelines.cosmos.{name}")
        module.CosmosSafetyChecker = GuardrailStandIn
