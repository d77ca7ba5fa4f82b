"""The description of the loaded model."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import EncoderChoice
from cache_dit_serving.media import png
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.media.video_encoders import encoder_name
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.fields import offered_fields
from cache_dit_serving.planning.fields.field import PipelineField
from cache_dit_serving.planning.loras import LoraContents
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.answers import ComponentInfo, LoraInfo, LorasResponse, ModelInfo, QuantizationInfo


def model_info(loaded: Loaded, configuration: str = "", video_encoder: EncoderChoice = "x264") -> ModelInfo:
    """The model, its versions and the memory it takes. Reads nothing that a running generation changes."""
    facts, model = loaded.runner.facts, loaded.model
    return ModelInfo(
        model=facts.name,
        model_path=facts.name,
        pipeline_class=model.traits.pipeline_class,
        tasks=[str(task) for task in model.tasks],
        weights=facts.weights,
        weights_version=facts.weights_version,
        variant=facts.variant,
        dtype=facts.dtype,
        torch_dtype=f"torch.{facts.dtype}",
        device=facts.device,
        offload=facts.offload,
        generator_device=facts.generator_device,
        configuration=configuration,
        enable_cache=model.speeds.default is not None,
        is_loaded=True,
        versions=facts.versions,
        encoders=_encoders(model.traits.makes, video_encoder),
        accepted_fields=[field.name for field, _ in offered_fields(model)],
        defaults=_defaults(model),
        limits={
            **model.limits.model_dump(mode="json"),
            "max_pixel_steps": model.max_pixel_steps,
            "size_multiple": model.traits.sizes.multiple,
        },
        attention_backend=facts.attention_backend,
        cache=_cache(model.speeds),
        inherited_cache=None if model.speeds.support.refusal else model.speeds.base.effective(),
        parallelism=facts.parallelism,
        quantization=[QuantizationInfo.model_validate(each._asdict()) for each in facts.quantized] or None,
        components=[ComponentInfo.model_validate(each._asdict()) for each in facts.components],
        loras=[lora.name for lora in model.loras],
        memory=loaded.runner.memory(),
    )


def loras_of_model(loaded: Loaded) -> LorasResponse:
    """The LoRAs that there are, in the configuration's order, those of its folder last."""
    there = loaded.runner.loras()
    infos = []
    for lora in loaded.model.loras:
        contents = there.get(lora.name) or (lora.contents if lora.fused else None)
        infos.append(
            LoraInfo(
                name=lora.name,
                scale=lora.scale,
                min_scale=lora.scale if lora.fused else -lora.max_scale,
                max_scale=lora.scale if lora.fused else lora.max_scale,
                fused=lora.fused,
                loaded=contents is not None,
                **(contents._asdict() if contents else dict.fromkeys(LoraContents._fields)),
            )
        )
    return LorasResponse(loras=infos)


def _defaults(model: PlannedModel) -> dict[str, Any]:
    """The pipeline's arguments of a request that leaves them out."""
    values = {
        field.name: field.default(variant)
        for field, variant in offered_fields(model)
        if isinstance(field, PipelineField)
    }
    return {name: value for name, value in values.items() if value is not None} | model.defaults.pipeline_arguments


def _encoders(kind: MediaKind, video_encoder: EncoderChoice) -> dict[str, str]:
    """Encoders by the file formats that depend on the machine; PNG files are also previews and differences."""
    return {"png": png.encoder()} | ({"mp4": encoder_name(video_encoder)} if kind is MediaKind.VIDEO else {})


def _cache(speeds: SpeedLadder) -> dict[str, Any] | None:
    """The cache as the configuration wants it; None where it wants none."""
    if speeds.default is None and speeds.unfulfilled is None:
        return None
    return {
        "settings": speeds.default.effective() if speeds.default else None,
        "speed": speeds.default_speed,
        "blocks": dict(speeds.support.block_lists),
        "running": speeds.unfulfilled is None,
        "reason": speeds.unfulfilled,
    }
