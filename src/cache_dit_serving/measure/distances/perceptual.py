"""Measures by networks, for operators that have the weights: LPIPS and a reward. They load at their first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cache_dit_serving.measure.distances.pixels import Pixels, floats, same_shape

LPIPS_WEIGHTS = {"alex": "alexnet-*.pth", "vgg": "vgg16-*.pth", "squeeze": "squeezenet1_1-*.pth"}
"""File of torchvision's weights by LPIPS' network."""


class NotInstalled(RuntimeError):
    """A package or file that a measure needs is missing. The message names it and the remedy."""


class Perceptual(Protocol):
    """Measure of a picture by a network."""

    name: str
    """Row in `table.py`."""
    weights: str
    """Network and the origin of its weights, for reports: figures of other weights cannot be compared."""

    def __call__(self, ours: Pixels, reference: Pixels, prompt: str) -> float:
        """Return the figure of a picture.

        Raises:
            NotInstalled: a package or the weights are missing.
        """
        ...


class Lpips:
    """LPIPS (Zhang et al. 2018) by the package lpips: distance to the reference, 0 for equal pictures."""

    name = "lpips"

    def __init__(self, network: str = "alex", folder: Path | None = None) -> None:
        """Name the weights.

        Args:
            network: alex, vgg or squeeze.
            folder: holds torchvision's file of weights; None: torch's own folder, which it is downloaded into.
        """
        self.weights = f"{network} {folder.name if folder else 'of torchvision'}"
        self._network, self._folder, self._model = network, folder, None

    def __call__(self, ours: Pixels, reference: Pixels, prompt: str = "") -> float:
        """Return the distance; the prompt does not count."""
        import torch

        same_shape(ours, reference)
        model = self._loaded()
        pair = [
            torch.from_numpy(np.moveaxis(2 * floats(picture) - 1, -1, 0)[None].copy()) for picture in (ours, reference)
        ]
        with torch.inference_mode():
            return float(model(*(picture.float() for picture in pair)))

    def _loaded(self) -> Any:
        if self._model is None:
            if self._folder and not any(self._folder.glob(LPIPS_WEIGHTS[self._network])):
                raise NotInstalled(f"LPIPS needs {LPIPS_WEIGHTS[self._network]} of torchvision in {self._folder}")
            try:
                import lpips
            except ImportError as error:
                raise NotInstalled(
                    "LPIPS needs the packages lpips, torchvision and scipy: pip install lpips"
                ) from error
            self._model = self._built(lpips.LPIPS).eval()
        return self._model

    def _built(self, build: Any) -> Any:
        if self._folder is None:
            return build(net=self._network, verbose=False)
        import torch

        model = build(net=self._network, pnet_rand=True, verbose=False)
        [file, *_] = sorted(self._folder.glob(LPIPS_WEIGHTS[self._network]))
        weights = torch.load(file, weights_only=True)
        return _with_backbone(model, weights)


def _with_backbone(model: Any, weights: dict[str, Any]) -> Any:
    """Return LPIPS with torchvision's layers, which it holds in slices whose keys end as torchvision's do."""
    layers = {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}
    model.net.load_state_dict({key: layers[key.split(".", 1)[1]] for key in model.net.state_dict()})
    return model


class Reward:
    """Score of a picture for its prompt by a CLIP of transformers, such as PickScore: higher is better."""

    name = "reward"

    def __init__(self, model: str) -> None:
        """Name the model: a folder that `save_pretrained` wrote, or a hub id such as yuvalkirstain/PickScore_v1."""
        self.weights = Path(model).name if Path(model).is_dir() else model
        self._source = model
        self._parts: tuple[Any, Any] | None = None

    def __call__(self, ours: Pixels, reference: Pixels, prompt: str) -> float:
        """Return the score of `ours`; the reference does not count, so its own score needs a call of its own."""
        import torch
        from PIL import Image

        model, processor = self._loaded()
        picture = Image.fromarray((255 * np.clip(floats(ours), 0, 1)).round().astype(np.uint8))
        inputs = processor(text=[prompt], images=[picture], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return float(model(**inputs).logits_per_image[0, 0])

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            from transformers import CLIPModel, CLIPProcessor

            try:
                model = CLIPModel.from_pretrained(self._source, use_safetensors=True).eval()
                self._parts = model, CLIPProcessor.from_pretrained(self._source)
            except (OSError, ValueError, ImportError) as error:
                raise NotInstalled(
                    f"the reward model {self._source} is no folder of a CLIP with safetensors files and its processor, "
                    "and no such id on the hub that can be reached"
                ) from error
        return self._parts
