"""Formats of LoRA files, recognised by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum

PLAIN = "merge it into its model and extract a plain LoRA from the difference, as kohya's extract_lora scripts do"


class LoraFormat(StrEnum):
    """Naming of a file's tensors, which the trainer chooses."""

    DIFFUSERS = "diffusers"
    PEFT = "PEFT"
    KOHYA = "kohya"
    MUSUBI = "musubi"
    AI_TOOLKIT = "ai-toolkit"
    LIGHTX2V = "lightx2v"
    XLABS = "XLabs"
    FAL_KONTEXT = "fal Kontext"
    BFL_CONTROL = "BFL control"
    LOKR = "LoKr"
    LOHA = "LoHa"
    KOHYA_DORA = "kohya DoRA"


REFUSED = {
    LoraFormat.LOHA: f"its format is LoHa (LyCORIS), which diffusers does not load; {PLAIN}",
    LoraFormat.KOHYA_DORA: "its format is DoRA with dora_scale tensors, which diffusers leaves out, so that the output "
    f"is another; save it with PEFT (lora_magnitude_vector), or {PLAIN}",
    LoraFormat.BFL_CONTROL: "its format is BFL's control LoRA, which overwrites weights of the model for good; serve "
    "the whole control model instead (model.path), such as FLUX.1-Canny-dev",
}
"""Formats that are not loaded, with the reason and the remedy."""

MARKS = (
    (re.compile(r"\.lokr_"), LoraFormat.LOKR),
    (re.compile(r"\.hada_"), LoraFormat.LOHA),
    (re.compile(r"\.dora_scale$"), LoraFormat.KOHYA_DORA),
    (re.compile(r"\.query_norm\.scale$"), LoraFormat.BFL_CONTROL),
    (re.compile(r"\.processor\..*lora"), LoraFormat.XLABS),
    (re.compile(r"base_model\.model\.(double|single)_blocks\."), LoraFormat.FAL_KONTEXT),
    (re.compile(r"base_model\.model\..*lora_"), LoraFormat.PEFT),
    (re.compile(r"lora_unet_blocks_\d+_(self|cross)_attn_"), LoraFormat.MUSUBI),
    (re.compile(r"lora_(unet|te\d?|transformer)_"), LoraFormat.KOHYA),
    (re.compile(r"diffusion_model\..*\.(lora_(down|up)\.weight|diff|diff_b)$"), LoraFormat.LIGHTX2V),
    (re.compile(r"diffusion_model\..*\.lora_[AB]\."), LoraFormat.AI_TOOLKIT),
    (re.compile(r".*[._]lora([._]|$)"), LoraFormat.DIFFUSERS),
)
"""Names that show a format. An earlier one wins: a LoKr file in kohya's naming is a LoKr file."""
OTHER_FILES = (
    (re.compile(r"image_proj\.|ip_adapter|.*\.processor\..*ip_adapter"), "the file is an IP-Adapter"),
    (re.compile(r"emb_params$|string_to_param|<.+>$|clip_[gl]$"), "the file is a textual inversion"),
)
"""Other kinds of files that are small and end in .safetensors."""


def format_of(names: Collection[str]) -> LoraFormat | None:
    """Return the format of a LoRA with tensors of these names; None: they are of no LoRA."""
    return next((found for mark, found in MARKS if any(mark.search(name) for name in names)), None)


def refusal(names: Collection[str], found: LoraFormat | None) -> str | None:
    """Return the reason that a file of a format is not loaded, with the remedy; None: it may be loaded."""
    if found is not None:
        return REFUSED.get(found)
    for mark, kind in OTHER_FILES:
        if any(mark.match(name) for name in names):
            return f"{kind}, which is not supported; remove it from the LoRAs"
    if not names:
        return "it holds no LoRA: it has no tensors; download or save it again"
    if any(name.endswith((".weight", ".bias")) for name in names):
        return (
            f"it is a checkpoint of a whole model or of a part of one ({len(names)} tensors, none of them a LoRA's); "
            "serve it as the model (model.path), or extract a LoRA from it"
        )
    return f"its format is unknown: none of its {len(names)} tensors has a LoRA's name; save it with diffusers or PEFT"
