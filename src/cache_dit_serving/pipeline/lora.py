"""LoRAs on a loaded pipeline: reading and checking of their files, loading, and the choice for each call.

diffusers and PEFT load the tensors that fit and log the others. Here a file with a tensor that does not fit is refused
before the pipeline is changed; the error lists the first such names.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from cache_dit_serving.config.settings import LORA_NAME, LoraSettings, ModelSettings, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.quantize import is_quantized
from cache_dit_serving.planning.loras import LoraChoice, LoraContents, LoraTraits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

USUAL_FILE = "pytorch_lora_weights.safetensors"
"""File name under which diffusers saves a LoRA; taken from a folder with several files."""
TENSOR = re.compile(
    r"(?P<component>\w+)\.(?P<module>.+)\.lora(_linear_layer)?[._](?P<side>A|B|down|up)(\.\w+)?\.weight"
)
"""Name of a tensor after diffusers' conversion of the formats that it knows."""
DOWN = frozenset({"A", "down"})
TRIGGER_WORDS = ("modelspec.trigger_phrase", "trigger_words", "ss_trigger_words")
"""Metadata keys, by trainer, of the words that activate a LoRA in a prompt."""
SHIPPED = "embedded/"
"""Prefix of the path of a LoRA that ships with the embedded model."""
EMBEDDED_LORAS = EMBEDDED_FOLDER.with_name("loras")
OTHERS = {
    "an IP-Adapter": re.compile(r"image_proj\.|ip_adapter|.*\.processor\..*ip_adapter"),
    "a textual inversion": re.compile(r"emb_params$|string_to_param|<.+>$|clip_[gl]$"),
}
"""Other kinds of .safetensors files, recognised by the names of their tensors."""
DENOISERS = frozenset({"transformer", "transformer_2", "unet"})
PAIR = 2
"""Matrices of a LoRA on one layer."""
NAMED = 3
"""Greatest number of names that an error lists."""


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
        if settings.fuse and any(is_quantized(getattr(pipe, name)) for name in self._components()):
            raise LoadError(f"LoRA {settings.name}: it cannot be fused into quantised weights; leave fuse out")
        tensors, metadata = read(settings)
        components, layers, rank = self._check(settings, tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        words = next((metadata[key] for key in TRIGGER_WORDS if metadata.get(key)), None)
        contents = LoraContents(layers, rank, size, words)
        place = self._place_of(settings.name)
        into = {"load_into_transformer_2": True} if settings.transformer == "transformer_2" else {}
        self._active = None
        try:
            with _checked_already(), _with_metadata(pipe, adapter_metadata(settings.name, metadata)):
                pipe.load_lora_weights(dict(tensors), adapter_name=place, **into)
        except Exception as error:
            logger.exception("the LoRA %s cannot be loaded", settings.name)
            pipe.delete_adapters([place])
            raise LoadError(f"LoRA {settings.name}: diffusers cannot load it ({type(error).__name__})") from error
        if components - DENOISERS:
            self._on_encoders.add(settings.name)
        if settings.fuse:
            pipe.fuse_lora(adapter_names=[place], lora_scale=settings.scale, components=self._components())
            pipe.unload_lora_weights()  # removes the LoRA's layers; the fused weights stay, and no other is loaded yet
            self._fused.append(LoraTraits.of(settings, contents))
        else:
            self._places[settings.name] = place
            self.loaded = {**self.loaded, settings.name: contents}

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
                    if not isinstance(scale, torch.Tensor):
                        there = self._scales.setdefault((id(layer), lora), torch.zeros((), device=self._scales_device))
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

    def _components(self) -> list[str]:
        return lora_components(type(self._pipe), self._pipe.components)

    def _check(self, settings: LoraSettings, tensors: Mapping[str, torch.Tensor]) -> tuple[set[str], int, int]:
        """Check that every tensor fits a layer of the pipeline. Returns (components, number of layers, greatest rank).

        Raises:
            LoadError: the format is unknown or a tensor does not fit; the message lists the first such names.
        """
        pipe: Any = self._pipe
        try:
            converted = pipe.lora_state_dict(dict(tensors))
        except Exception as error:
            logger.exception("the LoRA %s is of no format that diffusers knows", settings.name)
            raise LoadError(f"LoRA {settings.name}: it is of no format that diffusers knows for this model") from error
        if isinstance(converted, tuple):
            converted = converted[0]
        components = self._components()
        unmatched, wrong = [], []
        ranks: dict[tuple[str, str], list[int]] = {}
        """Ranks of a layer's matrices, two if the LoRA is complete, by (component, module)."""
        for name, tensor in converted.items():
            if name.endswith(".alpha"):
                continue
            parts = TENSOR.fullmatch(name)
            component = parts["component"] if parts else None
            if component == "transformer" and settings.transformer:
                component = settings.transformer
            layer = _layer(getattr(pipe, component), parts["module"]) if parts and component in components else None
            if layer is None or parts is None:
                unmatched.append(name)
                continue
            down = parts["side"] in DOWN
            ranks.setdefault((str(component), parts["module"]), []).append(tensor.shape[0 if down else 1])
            if tensor.shape[1 if down else 0] != layer.weight.shape[1 if down else 0]:
                wrong.append(name)
        if unmatched:
            raise LoadError(
                f"LoRA {settings.name}: {len(unmatched)} of {len(converted)} tensors match no layer of this model: "
                + _listed(unmatched)
            )
        if wrong:
            raise LoadError(f"LoRA {settings.name}: layers of this model have other sizes: {_listed(wrong)}")
        if halves := [f"{part}.{module}" for (part, module), pair in ranks.items() if len(pair) != PAIR]:
            raise LoadError(f"LoRA {settings.name}: only half of a LoRA for {_listed(halves)}")
        if not ranks:
            raise LoadError(f"LoRA {settings.name}: it holds no LoRA")
        return {component for component, _ in ranks}, len(ranks), max(map(max, ranks.values()))


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


def read(settings: LoraSettings) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a LoRA's file, and its metadata.

    Raises:
        LoadError: the file does not exist, is not safetensors, is damaged or of another kind, or holds NaN or infinity.
    """
    name = settings.name
    file = _locate(settings)
    if file.suffix != ".safetensors":
        raise LoadError(f"LoRA {name}: only .safetensors files are loaded, not {file.suffix or 'others'}")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        logger.exception("%s cannot be read", file)
        raise LoadError(f"LoRA {name}: the file is damaged, or is not safetensors") from error
    for other, names in OTHERS.items():
        if any(names.match(key) for key in tensors):
            raise LoadError(f"LoRA {name}: the file is {other}, which is not supported")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise LoadError(f"LoRA {name}: {key} holds values that are not numbers")
    return tensors, metadata


def _locate(settings: LoraSettings) -> Path:
    """Return the file of a LoRA, which its path names itself, by its folder or by a hub id.

    Raises:
        LoadError: there is no such file, or a folder has several and none is chosen.
    """
    path = Path(settings.path).expanduser()
    if settings.path.startswith(SHIPPED):
        path = EMBEDDED_LORAS / f"{settings.path.removeprefix(SHIPPED)}.safetensors"
    if path.is_file():
        return path
    if not path.is_dir():
        try:
            weight_name = settings.weight_name or USUAL_FILE
            return Path(huggingface_hub.hf_hub_download(settings.path, weight_name))
        except Exception as error:
            logger.exception("the LoRA %s cannot be found", settings.name)
            message = "its path is neither a file, a folder nor a hub id that can be read"
            raise LoadError(f"LoRA {settings.name}: {message}") from error
    if settings.weight_name is not None:
        if not (path / settings.weight_name).is_file():
            raise LoadError(f"LoRA {settings.name}: the folder has no file {settings.weight_name}")
        return path / settings.weight_name
    files = sorted(path.glob("*.safetensors"))
    usual = path / USUAL_FILE
    if usual in files or len(files) == 1:
        return usual if usual in files else files[0]
    there = f"{len(files)} .safetensors files; say which by weight_name" if files else "no .safetensors file"
    raise LoadError(f"LoRA {settings.name}: the folder has {there}")


def adapter_metadata(name: str, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the fields of PEFT's LoraConfig in a file's metadata, by `component.field`; None: there are none.

    Raises:
        LoadError: they are no JSON object.
    """
    stored = metadata.get(LORA_ADAPTER_METADATA_KEY)
    if not stored:
        return None
    try:
        fields = json.loads(stored)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise LoadError(f"LoRA {name}: {LORA_ADAPTER_METADATA_KEY} in its metadata is no JSON object")
    return fields


@contextmanager
def _with_metadata(pipe: Any, metadata: dict[str, Any] | None) -> Iterator[None]:
    """Have a pipeline load a state dict with this metadata.

    diffusers 0.42.1 reads the metadata, where alpha stands, from a file alone: it draws a state dict with another alpha.
    """
    read = pipe.lora_state_dict

    def lora_state_dict(*args: Any, **kwargs: Any) -> Any:
        *others, _ = read(*args, **kwargs)
        return (*others, metadata)

    pipe.lora_state_dict = lora_state_dict
    try:
        yield
    finally:
        del pipe.lora_state_dict


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
            warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")  # no LoRA is merged
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _layer(component: torch.nn.Module, path: str) -> Any:
    """Return the layer at a path of a component, if PEFT can put a LoRA on it; else None."""
    try:
        layer = component.get_submodule(path)
    except AttributeError:
        return None
    layer = getattr(layer, "base_layer", layer)
    return layer if getattr(layer, "weight", None) is not None and layer.weight.ndim >= 2 else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
