"""LoRAs on a loaded pipeline: loading, and the choice for each call.

diffusers and PEFT load the tensors that fit and log the others. Here a file with a tensor that does not fit is refused
before the pipeline is changed (:mod:`pipeline.lora_conversion`); the error lists the first such names.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from cache_dit_serving.config.settings import LORA_NAME, LoraSettings, ModelSettings, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.pipeline.lora_conversion import DENOISERS, Fit, Target, converting, listed
from cache_dit_serving.pipeline.lora_weights import LoraWeights, read
from cache_dit_serving.pipeline.quantize import is_quantized
from cache_dit_serving.pipeline.svdquant import layers_of
from cache_dit_serving.planning.loras import LoraChoice, LoraContents, LoraTraits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)


class LoadedLoras:
    """The LoRAs of one pipeline and of its siblings, which share its components."""

    def __init__(
        self, pipe: DiffusionPipeline, wanted: Sequence[LoraSettings], on_demand: Sequence[LoraSettings], most: int
    ) -> None:
        self._pipe = pipe
        self._wanted = wanted
        self._on_demand = {settings.name: settings for settings in on_demand}
        self._most = most
        """Greatest number of on-demand LoRAs that are loaded at a time."""
        self._places: dict[str, str] = {}
        """PEFT's adapter name of each loaded LoRA. LoRAs of the folder reuse a fixed set of adapter names, so that a
        compiled graph also serves a later LoRA of the same rank and layers."""
        self.loaded: dict[str, LoraContents] = {}
        """Contents of the loaded LoRAs that are not fused, by name, the one used longest ago first.

        Replaced, never changed in place: other threads read it."""
        self._on_encoders: set[str] = set()
        """Names of the LoRAs that change a component other than the denoisers."""
        self._fused: list[LoraTraits] = []
        self._active: tuple[LoraChoice, ...] | None = None
        """LoRAs that are active on the pipeline; None: not known, and set anew by the next call."""
        self._scales: dict[tuple[int, str], torch.Tensor] | None = None
        """Scale by (id of the layer, adapter name), if scales are tensors; None: they are numbers."""
        self._scales_device = "cpu"

    @classmethod
    def of(cls, pipe: DiffusionPipeline, settings: Settings) -> LoadedLoras:
        """Return the LoRAs of the configuration and of its folder, none of them loaded yet.

        Raises:
            LoadError: diffusers cannot put a LoRA on the pipeline, or the folder does not exist.
        """
        wanted = settings.model.loras
        loras = cls(pipe, wanted, _in_folder(settings.model), settings.limits.max_loras)
        if (wanted or loras._on_demand) and not lora_components(type(pipe), pipe.components):
            raise LoadError(f"model.loras: diffusers cannot put a LoRA on a {type(pipe).__name__}")
        return loras

    def load_those(self, *, fused: bool, progress: Callable[[str], None]) -> None:
        """Load the configuration's LoRAs that are to be fused into the weights, or the others.

        Raises:
            LoadError: a LoRA cannot be loaded.
        """
        for each in self._wanted:
            if each.fuse is fused:
                progress(f"loading the LoRA {each.name}")
                self.load(each)

    def load(self, settings: LoraSettings) -> None:
        """Load a LoRA and, if so configured, fuse it. One that is not fused stays inactive until :meth:`use`.

        Raises:
            LoadError: the file is not there, not safetensors, damaged, or for other weights. The pipeline is as before.
        """
        pipe: Any = self._pipe
        if any(layers_of(getattr(pipe, name)) for name in self._components()):
            raise LoadError(
                f"LoRA {settings.name}: no LoRA lies on layers of SVDQuant: fuse it into the full weights before they "
                "are quantised (`fuse: true` with `quantize`)"
            )
        if settings.fuse and any(is_quantized(getattr(pipe, name)) for name in self._components()):
            raise LoadError(f"LoRA {settings.name}: it cannot be fused into quantised weights; leave fuse out")
        weights = read(settings, self._denoiser())
        place = self._place_of(settings.name)
        into = {"load_into_transformer_2": True} if settings.transformer == "transformer_2" else {}
        target = Target(pipe, self._components(), settings.transformer)
        self._active = None
        try:
            with _checked_already(), converting(target, weights) as fit:
                pipe.load_lora_weights(weights.tensors, adapter_name=place, **into)
                self._check_loaded(weights, place, fit)
        except LoadError:
            pipe.delete_adapters([place])
            raise
        except Exception as error:
            logger.exception("%s cannot be loaded", weights.label)
            pipe.delete_adapters([place])
            raise LoadError(
                f"{weights.label}: diffusers cannot load it ({weights.file.format} format, {type(error).__name__}); "
                "save it with diffusers or PEFT from the model that it is for"
            ) from error
        contents = _contents(weights, fit)
        _report(weights, contents)
        if fit.parts.keys() - DENOISERS:
            self._on_encoders.add(settings.name)
        if settings.fuse:
            pipe.fuse_lora(adapter_names=[place], lora_scale=settings.scale, components=self._components())
            pipe.unload_lora_weights()  # removes the LoRA's layers; the fused weights stay, and no other is loaded yet
            self._fused.append(LoraTraits.of(settings, contents))
        else:
            self._places[settings.name] = place
            self.loaded = {**self.loaded, settings.name: contents}

    @property
    def fused(self) -> list[str]:
        """Names of the LoRAs that are part of the weights."""
        return [each.name for each in self._fused]

    def traits(self) -> tuple[LoraTraits, ...]:
        """Return the traits of all LoRAs for planning, in the configuration's order; those of the folder last."""
        fused = {each.name: each for each in self._fused}
        configured = [fused.get(each.name) or LoraTraits.of(each, self.loaded[each.name]) for each in self._wanted]
        return (*configured, *(LoraTraits.of(each, None) for each in self._on_demand.values()))

    def use(self, choices: tuple[LoraChoice, ...]) -> None:
        """Activate these LoRAs and no others. Does nothing if they are active with the same scales.

        Several LoRAs are added to a layer in the given order.

        Raises:
            InvalidRequest: a LoRA that is not loaded yet cannot be loaded.
        """
        if choices == self._active or not (self.loaded or choices):
            return
        self.ensure([choice.name for choice in choices])
        pipe: Any = self._pipe
        before, self._active = self._active, None
        if not choices:
            pipe.disable_lora()
        else:
            if not before:
                pipe.enable_lora()
            pipe.set_adapters([self._places[each.name] for each in choices], [each.scale for each in choices])
            self._put_scales()
        self._active = choices

    def on_encoders(self) -> tuple[LoraChoice, ...]:
        """Return the active LoRAs that change a text encoder."""
        return tuple(each for each in self._active or () if each.name in self._on_encoders)

    def keep_scales_as_tensors(self, device: str) -> None:
        """Keep scales as tensors from now on, filled with each call's values.

        torch.compile treats numbers as constants, and would compile anew for each scale.
        """
        self._scales = {}
        self._scales_device = device
        self._active = None

    def _put_scales(self) -> None:
        if self._scales is None:
            return
        for name in self._components():
            for layer in getattr(self._pipe, name).modules():
                if not isinstance(layer, LoraLayer):
                    continue
                for lora, scale in layer.scaling.items():
                    there = self._scales.setdefault((id(layer), lora), torch.zeros((), device=self._scales_device))
                    if scale is not there:  # a number, or a tensor made anew of an alpha that is one
                        layer.scaling[lora] = there.fill_(scale)

    def ensure(self, names: Sequence[str]) -> None:
        """Load the named LoRAs of the folder that are not loaded; free those used longest ago if there are too many.

        Raises:
            InvalidRequest: a LoRA cannot be loaded; those before it stay loaded.
        """
        for name in names:
            if name in self.loaded:
                self.loaded = {key: value for key, value in self.loaded.items() if key != name} | {
                    name: self.loaded[name]
                }
                continue
            kept = [each for each in self.loaded if each in self._on_demand]
            for leaving in [each for each in kept if each not in names][: max(0, len(kept) + 1 - self._most)]:
                self.unload(leaving)
            try:
                self.load(self._on_demand[name])
            except LoadError as error:
                raise InvalidRequest(str(error), param="loras") from error

    def unload(self, name: str) -> None:
        """Free a LoRA of the folder, if it is loaded."""
        if name in self.loaded and name in self._on_demand:
            pipe: Any = self._pipe
            self._active = None
            place = self._places.pop(name)
            pipe.delete_adapters([place])
            if self._scales is not None:
                self._scales = {key: scale for key, scale in self._scales.items() if key[1] != place}
            self.loaded = {key: value for key, value in self.loaded.items() if key != name}

    def _place_of(self, name: str) -> str:
        if name not in self._on_demand:
            return name
        taken = self._places.values()
        # No LoRA's name begins with a dash.
        return next(place for number in range(self._most) if (place := f"-{number}") not in taken)

    def _denoiser(self) -> str:
        return next((name for name in self._components() if name in DENOISERS), "transformer")

    def _check_loaded(self, weights: LoraWeights, place: str, fit: Fit) -> None:
        """Check that PEFT took every tensor; it only warns of one that the adapter's configuration leaves no place.

        Raises:
            LoadError: it left some out.
        """
        for component, number in fit.tensors.items():
            model = getattr(self._pipe, component)
            if component in DENOISERS:
                model.eval()  # PEFT adds layers in training mode
            taken = len(get_peft_model_state_dict(model, adapter_name=place))
            if taken < number:
                raise LoadError(
                    f"{weights.label}: PEFT takes {taken} of the {number} tensors for the {component} "
                    f"({weights.file.format} format): its configuration does not fit them; save it again"
                )

    def _components(self) -> list[str]:
        return lora_components(type(self._pipe), self._pipe.components)


def lora_components(cls: type[DiffusionPipeline], components: Mapping[str, object]) -> list[str]:
    """Return the components that diffusers can put a LoRA on; empty if no denoiser is among them, as with PRX."""
    loadable = getattr(cls, "_lora_loadable_modules", ())
    there = [name for name in loadable if components.get(name) is not None]
    return there if any(name in DENOISERS for name in there) else []


def _in_folder(model: ModelSettings) -> list[LoraSettings]:
    """Return the LoRAs of the configuration's folder, sorted by name.

    A file with the name of a LoRA in the configuration's list is left out.

    Raises:
        LoadError: the folder does not exist.
    """
    if model.lora_folder is None:
        return []
    folder = model.lora_folder.expanduser()
    if not folder.is_dir():
        raise LoadError("model.lora_folder is not a folder on the server")
    taken = {lora.name for lora in model.loras}
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem in taken or not re.fullmatch(LORA_NAME, file.stem):
            logger.warning("%s of the LoRA folder is left out: its name is taken, or is not one", file.name)
            continue
        found.append(LoraSettings(name=file.stem, path=str(file), scale=0.0))
    return found


def _contents(weights: LoraWeights, fit: Fit) -> LoraContents:
    file = weights.file
    return LoraContents(
        layers=fit.parts.total(),
        rank=fit.rank,
        size_bytes=file.header.size_bytes,
        trigger_words=file.trigger_words,
        format=file.format.value,
        parts=dict(fit.parts),
        left_out=listed(fit.left_out) or None,
        suggested_steps=file.sampling.steps,
        suggested_shift=file.sampling.shift,
    )


def _report(weights: LoraWeights, contents: LoraContents) -> None:
    """Log a LoRA's contents; warn of tensors that diffusers does not apply."""
    parts = ", ".join(f"{number} layers of the {part}" for part, number in contents.parts.items())
    words = f"; suggested num_inference_steps: {contents.suggested_steps}" if contents.suggested_steps else ""
    words += f"; suggested shift: {contents.suggested_shift:g}" if contents.suggested_shift else ""
    logger.info("%s: %s format, %s, rank %d%s", weights.label, contents.format, parts, contents.rank, words)
    if contents.left_out:
        logger.warning("%s: diffusers does not apply these of its tensors: %s", weights.label, contents.left_out)


@contextmanager
def _checked_already() -> Iterator[None]:
    """Silence the warnings of diffusers and PEFT about tensors that do not fit; `LoadedLoras` has checked them.

    Their warnings also name the layers of other LoRAs as missing.
    """
    loggers = [logging.getLogger(name) for name in ("diffusers.loaders", "diffusers.utils.peft_utils")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
            warnings.filterwarnings("ignore", message="Adapter .* tensor.s. have invalid shape")  # biases, as intended
            warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")  # no LoRA is merged
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
