"""Conversion of a LoRA's tensors by diffusers, checked: every tensor has its layer, and none is left out silently."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

from cache_dit_serving.errors import LoadError
from cache_dit_serving.loras.adapter_config import UnsupportedAdapter, applied
from cache_dit_serving.loras.formats import REFUSED, LoraFormat
from cache_dit_serving.pipeline.lora_tracing import plain, traced, used
from cache_dit_serving.pipeline.lora_weights import LoraWeights

logger = logging.getLogger(__name__)

TENSOR = re.compile(
    r"(?P<layer>.+?)\.((lora|lora_linear_layer)[._](?P<old>down|up)(\.\w+)?\.weight"
    r"|lora_(?P<side>A|B)(\.\w+)?\.weight|lora_B(\.\w+)?\.(?P<bias>bias)"
    r"|(?P<magnitude>lora_magnitude_vector)(\.\w+)?(\.weight)?|(?P<lokr>lokr_w[12](_[ab])?))"
)
"""Name of a tensor within a component, after diffusers' conversion."""
DENOISERS = frozenset({"transformer", "transformer_2", "unet"})
BESIDE = re.compile(r"lora_te\d?_|text_encoders?[._]|.*\.(diff|diff_b)$|.*position_embedding|.*text_projection")
"""Names of tensors that diffusers may leave out without harm to the others: text encoders', and differences of norms
and biases."""
FUSED = ("to_qkv", "to_added_qkv")
"""Projections that diffusers would fuse in the model for a LoKr, for good."""
ALPHA = ".alpha"
PADDED = "x_embedder"
"""Layer whose first matrix diffusers pads with zeros, on Flux."""
PAIR = 2
"""Matrices of a LoRA on one layer."""
NAMED = 3
"""Greatest number of names that an error lists."""


@dataclass(frozen=True)
class Target:
    """A pipeline, and the components of it that a LoRA may change."""

    pipe: Any
    components: Sequence[str]
    """Components that diffusers can put a LoRA on."""
    transformer: str | None
    """Transformer that the LoRA is for; None: the first."""


@dataclass
class Fit:
    """A LoRA that fits a pipeline."""

    parts: Counter[str] = field(default_factory=Counter)
    """Number of layers by component."""
    tensors: Counter[str] = field(default_factory=Counter)
    """Number of tensors by component."""
    rank: int = 0
    """Greatest rank of its layers."""
    left_out: list[str] = field(default_factory=list)
    """Names of the file's tensors that diffusers does not apply."""


@contextmanager
def converting(target: Target, weights: LoraWeights) -> Iterator[Fit]:
    """Have `load_lora_weights` of a pipeline convert a state dict with its configuration, and check it before loading.

    diffusers 0.42.1 reads the configuration, where alpha may stand, from a file alone. A file would be read once for
    the check and once more to be loaded; conversions also scale tensors in place, so that a second one scales twice.

    Raises:
        LoadError: by `load_lora_weights`, if the LoRA does not fit as a whole. The pipeline is as before.
    """
    fit = Fit()
    pipe = target.pipe
    convert = pipe.lora_state_dict

    def lora_state_dict(state_dict: Mapping[str, torch.Tensor], **kwargs: Any) -> Any:
        try:
            converted, *alphas, _ = convert(traced(state_dict), **kwargs)
        except Exception as error:
            logger.exception("%s: diffusers cannot convert it", weights.label)
            kind = weights.file.format
            raise LoadError(
                f"{weights.label}: diffusers does not load its format, {kind}, for a {type(pipe).__name__}, or its "
                "layers are another model's; save it with diffusers or PEFT from the model that it is for"
            ) from error
        aside = {name for name in converted if name.endswith(ALPHA)}
        applied_tensors = [
            tensor for name, tensor in converted.items() if name not in aside or _of_scale_1(name, converted)
        ]
        fit.left_out = _left_out(weights, [*applied_tensors, *(alphas[0] or {} if alphas else {}).values()])
        converted = {name: tensor for name, tensor in plain(converted).items() if name not in aside}
        _check(target, weights, converted, fit)
        return (converted, *(plain(each) for each in alphas), _metadata(weights, converted))

    pipe.lora_state_dict = lora_state_dict
    try:
        yield fit
    finally:
        del pipe.lora_state_dict


def _left_out(weights: LoraWeights, converted: list[Any]) -> list[str]:
    """Return the file's tensors that the conversion left out, if the others are whole without them.

    Raises:
        LoadError: a layer lacks a part, so that it would change the output in another way.
    """
    kept = used(converted)
    lost = [name for name, tensor in weights.tensors.items() if name not in kept and tensor.float().any()]
    if any(name.endswith("dora_scale") for name in lost):
        raise LoadError(f"{weights.label}: {REFUSED[LoraFormat.KOHYA_DORA]}")
    if alien := [name for name in lost if not BESIDE.match(name)]:
        raise LoadError(
            f"{weights.label}: diffusers applies {len(weights.tensors) - len(alien)} of its {len(weights.tensors)} "
            f"tensors ({weights.file.format} format), not {listed(alien)}; save it with diffusers or PEFT"
        )
    return lost


def _of_scale_1(alpha: str, converted: Mapping[str, torch.Tensor]) -> bool:
    """Return true for an alpha that equals its layer's rank, which nothing has to apply."""
    layer = alpha.removesuffix(ALPHA)
    down = next(
        (converted[name] for side in ("lora_A", "lora.down") if (name := f"{layer}.{side}.weight") in converted), None
    )
    return down is not None and plain(converted[alpha]).item() == down.shape[0]


def _metadata(weights: LoraWeights, converted: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Return the configuration as diffusers' loaders take it: of each component, the fields that have an effect.

    Raises:
        LoadError: it sets a field that wants more than a LoRA beside the weights.
    """
    if weights.adapter is None:
        return None
    metadata: dict[str, Any] = {}
    for component in {name.split(".")[0] for name in converted}:
        start = f"{component}."
        fields = {key.removeprefix(start): value for key, value in weights.adapter.items() if key.startswith(start)}
        if weights.file.format is LoraFormat.LOKR:
            kept = fields
        else:
            try:
                kept = applied(fields)
            except UnsupportedAdapter as error:
                raise LoadError(f"{weights.label}: {error}") from error
            names = [name.removeprefix(start) for name in converted if name.startswith(start)]
            kept["target_modules"] = sorted({match["layer"] for name in names if (match := TENSOR.fullmatch(name))})
        metadata |= {start + key: value for key, value in kept.items()}
    return metadata


def _check(target: Target, weights: LoraWeights, converted: Mapping[str, torch.Tensor], fit: Fit) -> None:
    """Check that every tensor fits a layer of the pipeline, and fill `fit`.

    Raises:
        LoadError: a tensor does not fit; the message lists the first such names.
    """
    label, kind = weights.label, weights.file.format
    unmatched, wrong = [], []
    sides: dict[tuple[str, str], dict[str, int]] = {}
    """Ranks of a layer's matrices by side, by (component, layer)."""
    for name, tensor in _in_pefts_naming(converted).items():
        component, _, rest = name.partition(".")
        match = TENSOR.fullmatch(rest)
        layer_name = match["layer"] if match else ""
        if component == "transformer" and target.transformer:
            component = target.transformer
        model = getattr(target.pipe, component) if component in target.components else None
        layer = _layer(model, layer_name) if match and model is not None else None
        if match is None or layer is None:
            unmatched.append(name)
            continue
        fit.tensors[component] += 1
        side = _side(match)
        rank = tensor.shape[0 if side in ("A", "lokr_w2_b") else -1] if side != "more" else 0
        sides.setdefault((component, layer_name), {})[side] = rank
        if side in ("A", "B", "lokr_w2_b"):
            fit.rank = max(fit.rank, rank)
        if not _fits(side, layer_name, tensor, layer):
            wrong.append(name)
    if unmatched:
        fused = kind is LoraFormat.LOKR and any(f".{each}." in name for each in FUSED for name in unmatched)
        way_out = (
            "load a LoKr that was trained on separate projections" if fused else "load it with the model it is for"
        )
        raise LoadError(
            f"{label}: {len(unmatched)} of {len(converted)} tensors match no layer of this model ({kind} format): "
            f"{listed(unmatched)}; {way_out}"
        )
    halves = [f"{part}.{layer}" for (part, layer), found in sides.items() if not _whole(found.keys())]
    wrong += [f"{part}.{layer}" for (part, layer), ranks in sides.items() if ranks.get("A", 0) != ranks.get("B", 0)]
    if wrong and not halves:
        raise LoadError(
            f"{label}: layers of this model have other sizes ({kind} format): {listed(wrong)}; "
            "load it with the model it is for"
        )
    if halves:
        raise LoadError(f"{label}: only half of a LoRA for {listed(halves)} ({kind} format); download or save it again")
    if not sides:
        raise LoadError(f"{label}: it holds no LoRA for this model ({kind} format); load it with the model it is for")
    fit.parts.update(part for part, _ in sides)


def _in_pefts_naming(converted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with those of text encoders named as PEFT names them, as diffusers' loader does."""
    named: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in converted.items():
        component, _, rest = name.partition(".")
        parts.setdefault(component, {})[rest] = tensor
    for component, tensors in parts.items():
        if component.startswith("text_encoder"):
            tensors = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))  # noqa: PLW2901
        named |= {f"{component}.{rest}": tensor for rest, tensor in tensors.items()}
    return named


def _side(match: re.Match[str]) -> str:
    if match["bias"] or match["magnitude"]:
        return "more"
    return match["lokr"] or match["side"] or {"down": "A", "up": "B"}[match["old"]]


def _whole(sides: Set[str]) -> bool:
    if {"A", "B"} <= sides:
        return True
    return all(
        f"lokr_{factor}" in sides or {f"lokr_{factor}_a", f"lokr_{factor}_b"} <= sides for factor in ("w1", "w2")
    )


def _fits(side: str, layer_name: str, tensor: torch.Tensor, layer: Any) -> bool:
    # The weight of a quantised layer may be packed: its own shape tells nothing.
    linear = isinstance(layer, torch.nn.Linear)
    wide, out = (layer.in_features, layer.out_features) if linear else (layer.weight.shape[1], layer.weight.shape[0])
    if side == "B":
        return tensor.shape[0] == out
    if side != "A" or tensor.shape[1] == wide:
        return True  # PEFT compares the others with the layer itself
    # Flux's loader pads a LoRA of the text-to-image model for a control model, which takes more channels in.
    return layer_name == PADDED and tensor.shape[1] < wide


def _layer(component: torch.nn.Module, path: str) -> Any:
    """Return the layer at a path of a component, if PEFT can put a LoRA on it; else None."""
    # transformers 5 has no `text_model` in CLIP; diffusers takes it out of the names of older LoRAs.
    for each in (path, path.removeprefix("text_model.")):
        try:
            layer = component.get_submodule(each)
        except AttributeError:
            continue
        layer = getattr(layer, "base_layer", layer)
        return layer if getattr(layer, "weight", None) is not None and layer.weight.ndim >= PAIR else None
    return None


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name[:150] for name in names[:NAMED]) + more
