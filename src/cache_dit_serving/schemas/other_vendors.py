"""Fields of other vendors' image APIs that OpenAI's lacks, and their replacements here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ForeignField:
    """A field of another vendor's API that this server does not have."""

    remedy: str
    """Instruction for the caller, used in errors: the field to send instead, or to leave it out."""
    field: str | None = None
    """Field of this server with the same meaning; None without one."""
    nothing: tuple[Any, ...] = ()
    """Values that request this server's only behaviour. They are accepted and ignored."""

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, "", *self.nothing)


def _same(field: str) -> ForeignField:
    return ForeignField(f"send {field}", field)


SIZE = "send size, as WIDTHxHEIGHT: 1344x768 is about 16:9, 1024x1024 is 1:1"
SCHEDULER = ForeignField("send scheduler", "scheduler", nothing=("auto", "default"))
NO_WATERMARK = ForeignField("pictures here bear no watermark; leave it out", nothing=(False,))
PROMPT_AS_IT_STANDS = ForeignField("prompts are drawn as they stand; leave it out", nothing=(False,))
NO_SAFETY_CHECKER = ForeignField("this server checks no content; leave it out", nothing=(False,))
IMAGE = ForeignField("POST /v1/images/edits takes pictures")

OF_EVERYTHING: Mapping[str, ForeignField] = {
    **dict.fromkeys(("aspect_ratio", "ratio", "resolution"), ForeignField(SIZE, nothing=("auto",))),
    **dict.fromkeys(("width", "height"), ForeignField(SIZE)),
    "image_size": _same("size"),
    **dict.fromkeys(("steps", "num_steps", "sample_steps", "inference_steps"), _same("num_inference_steps")),
    **dict.fromkeys(("guidance", "cfg", "cfg_scale"), _same("guidance_scale")),
    **dict.fromkeys(("image_strength", "denoising_strength"), _same("strength")),
    **dict.fromkeys(("sampler", "sampler_name", "sample_method", "schedule"), SCHEDULER),
    **dict.fromkeys(("watermark", "add_watermark"), NO_WATERMARK),
    **dict.fromkeys(
        ("prompt_extend", "prompt_upsampling", "prompt_optimizer", "enhance_prompt", "magic_prompt"),
        PROMPT_AS_IT_STANDS,
    ),
    **dict.fromkeys(("safety_checker", "enable_safety_checker"), NO_SAFETY_CHECKER),
    "disable_safety_checker": ForeignField(NO_SAFETY_CHECKER.remedy, nothing=(True,)),
}
"""Fields refused on every OpenAI route. They come from xAI, Together, SiliconFlow, Volcengine, Alibaba, Replicate,
Google and stable-diffusion.cpp.
"""

OF_IMAGES: Mapping[str, ForeignField] = {
    **OF_EVERYTHING,
    **dict.fromkeys(("batch_size", "num_images", "num_images_per_prompt", "num_outputs", "sample_count"), _same("n")),
    "sequential_image_generation": ForeignField("send n", nothing=("disabled",)),
}

OF_GENERATIONS: Mapping[str, ForeignField] = {
    **OF_IMAGES,
    **dict.fromkeys(("image", "images", "image_url", "image_urls", "mask", "input_image", "input_references"), IMAGE),
}

OF_VIDEOS: Mapping[str, ForeignField] = {
    **OF_EVERYTHING,
    **dict.fromkeys(("duration", "n_seconds"), _same("seconds")),
    **dict.fromkeys(("image", "image_url", "input_image"), ForeignField("send input_reference")),
    **dict.fromkeys(("n", "n_variants"), ForeignField("one clip a request; leave it out", nothing=(1,))),
}
