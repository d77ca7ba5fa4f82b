"""Tables of classes of diffusers 0.42 with facts that neither their signature nor their configuration has.

No other module names a pipeline's class or a component's.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.media.fit import Fit


@dataclass(frozen=True)
class Family:
    """Facts about a pipeline class. The defaults are those of a class that is in no table."""

    needs_input: bool = False
    """True if it needs an image or a video although its signature has None as the default. Each was found by a run."""
    several_images: bool = False
    """True if it makes one output from several images. Others make one output per image."""
    image_name: str | None = None
    """Pattern of the name that its prompts give image `{number}`; None if they name no images."""
    fit_of_image: Fit | None = "stretch"
    """Its own resizing of an input image to the output size; None: it does not resize."""
    fit_of_video: Fit | None = "stretch"
    """Its own resizing of an input video to the output size; None: it does not resize."""
    example_prompt: str = "an example"
    """Shortest prompt that it takes."""
    needs_negative_prompt: bool = False
    """True if it fails without a negative prompt. An empty one is enough."""
    counts_latent_frames: bool = False
    """True if `sample_frames` of its configuration counts latent frames."""
    decodes_tiles_alone: bool = False
    """True if its autoencoder decodes by tiles only, and leaves frames beyond the last whole tile black."""
    animates: bool = False
    """True if its text-to-video weights also work in the family's image-to-video class."""
    no_cache_reason: str | None = None
    """Reason that its output changes through the cache even if it reuses nothing; None: it does not change."""


@dataclass(frozen=True)
class Component:
    """Facts about a class of a pipeline's components. The defaults are those of a class that is in no table."""

    latents_decoded_together: int = 1
    """Latent frames that an autoencoder decodes together. A video whose latent frames are no multiple of it comes out
    longer than requested."""
    later_than_cache_dit: bool = False
    """True if cache-dit 1.5.3 refuses a transformer although it knows the family. diffusers added the class later, and
    calls its blocks as the family's."""
    takes_residuals: bool = True
    """True if a transformer of cache-dit's families takes the residuals of a ControlNet, where the family has them."""


_NEEDS_INPUT = Family(needs_input=True)
_SEVERAL_PICTURES = Family(several_images=True)
_NEGATIVE_PROMPT = Family(needs_negative_prompt=True)

FAMILIES: dict[str, Family] = {
    "AllegroPipeline": Family(counts_latent_frames=True, decodes_tiles_alone=True),
    "BriaFiboEditPipeline": Family(example_prompt='{"edit_instruction": "an example"}'),
    "Cosmos2VideoToWorldPipeline": _NEEDS_INPUT,
    "Cosmos3OmniPipeline": Family(fit_of_image="crop"),
    "CosmosVideoToWorldPipeline": _NEEDS_INPUT,
    "EasyAnimateControlPipeline": _NEGATIVE_PROMPT,
    "EasyAnimateInpaintPipeline": _NEGATIVE_PROMPT,
    "EasyAnimatePipeline": _NEGATIVE_PROMPT,
    "Flux2KleinKVPipeline": Family(
        several_images=True,
        no_cache_reason="each block keeps keys and values of its own, and cache-dit runs all blocks as one",
    ),
    "Flux2KleinPipeline": _SEVERAL_PICTURES,
    "Flux2Pipeline": _SEVERAL_PICTURES,
    "GlmImagePipeline": _SEVERAL_PICTURES,
    "HunyuanImageRefinerPipeline": _NEEDS_INPUT,
    "JoyImageEditPipeline": _NEEDS_INPUT,
    "JoyImageEditPlusPipeline": Family(needs_input=True, several_images=True),
    "LTX2ImageToVideoPipeline": _NEEDS_INPUT,
    "LTX2Pipeline": Family(animates=True),
    "LTXI2VLongMultiPromptPipeline": _NEEDS_INPUT,
    "LTXImageToVideoPipeline": _NEEDS_INPUT,
    "LTXPipeline": Family(animates=True),
    "LongCatImageEditPipeline": _NEEDS_INPUT,
    "OmniGenPipeline": Family(several_images=True, image_name="<img><|image_{number}|></img>"),
    "QwenImageEditPipeline": _NEEDS_INPUT,
    "QwenImageEditPlusPipeline": Family(needs_input=True, several_images=True),
    "QwenImageLayeredPipeline": _NEEDS_INPUT,
    # It would keep a smaller video and misalign its parts with the larger output's.
    "WanVACEPipeline": Family(needs_input=True, fit_of_video=None),
}
"""Facts by pipeline class."""

COMPONENTS: dict[str, Component] = {
    "AutoencoderKLCogVideoX": Component(latents_decoded_together=2),
    "HunyuanVideoFramepackTransformer3DModel": Component(later_than_cache_dit=True),
    "JoyImageEditPlusTransformer3DModel": Component(later_than_cache_dit=True),
    "SanaVideoTransformer3DModel": Component(later_than_cache_dit=True, takes_residuals=False),
    "StableAudio3DiTModel": Component(later_than_cache_dit=True),
}
"""Facts by class of an autoencoder or a transformer."""

_USUAL, _USUAL_COMPONENT = Family(), Component()


def family_of(pipeline_class: str) -> Family:
    """Return the facts about a pipeline class."""
    return FAMILIES.get(pipeline_class, _USUAL)


def component_of(component: object) -> Component:
    """Return the facts about the class of a component; None has the usual ones."""
    return COMPONENTS.get(type(component).__name__, _USUAL_COMPONENT)
