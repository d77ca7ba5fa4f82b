"""Loading of components from files and folders of their own, as diffusers and transformers load them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, GGUFQuantizationConfig
from diffusers.loaders.single_file import FromSingleFileMixin
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from safetensors.torch import load_file
from transformers import PreTrainedModel

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile
from cache_dit_serving.checkpoints.families import DENOISER_PREFIXES
from cache_dit_serving.checkpoints.schemes import Scheme
from cache_dit_serving.config.folder import INDEX, in_folder
from cache_dit_serving.config.hub import on_hub
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.config.sources import PATH, TRANSFORMER, ComponentSource, Sources
from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline import svdquant
from cache_dit_serving.pipeline.encoder_file import load_encoder
from cache_dit_serving.pipeline.memory import is_out_of_memory
from cache_dit_serving.pipeline.missing_tensors import MissingOf, noted_missing
from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.scaled_fp8 import dequantized

logger = logging.getLogger(__name__)

CONFIGS = ("config.json", "scheduler_config.json")
"""Files in which diffusers writes a component's class."""
AS_FOLDER = "name a folder that save_pretrained wrote"


def load_parts(
    sources: Sources, location: str, model: ModelSettings, variant: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the components that have a source of their own, by name.

    Args:
        location: argument of `from_pretrained` for the pipeline: a local folder or a hub id.
        variant: variant of the weights there.

    Raises:
        LoadError: the pipeline has no such component, or its source does not fit; names the setting and the file.
    """
    if not sources.mixed:
        return {}
    parts: dict[str, Any] = {}
    with noted_missing() as missing_of:
        target = _Target(location, model, variant, missing_of)
        for name, source in sources.components.items():
            progress(f"loading {name} from {source.name}")
            cls = target.class_of(name, source.key)
            if source.file is not None:
                parts[name] = target.from_file(cls, name, source.file, source.key)
            else:
                parts[name] = target.from_folder(cls, name, source)
        whole = sources.whole
        if whole is not None and whole.scheme is Scheme.SCALED_FP8 and TRANSFORMER not in parts:
            parts[TRANSFORMER] = target.from_file(target.class_of(TRANSFORMER, PATH), TRANSFORMER, whole, PATH)
    return parts


def load_whole(
    cls: type[DiffusionPipeline], file: CheckpointFile, location: str, parts: Mapping[str, Any], model: ModelSettings
) -> DiffusionPipeline:
    """Return the pipeline that a file holds as a whole.

    Args:
        cls: class of the pipeline; DiffusionPipeline stands for the class that the configurations name.
        location: folder or hub id with the configurations, and the components that the file lacks.

    Raises:
        LoadError: diffusers loads no such class from one file, or the file does not fit the configurations.
    """
    index = DiffusionPipeline.load_config(location, revision=model.revision)
    if cls is DiffusionPipeline:
        cls = getattr(diffusers, index["_class_name"])
    if not issubclass(cls, FromSingleFileMixin):
        raise LoadError(
            f"{PATH}: diffusers loads no {cls.__name__} from one file such as {file.name}; {AS_FOLDER}, or give the "
            "transformer alone in model.components"
        )
    with noted_missing() as missing_of, _fitting(PATH, file.name, f"the configurations of {Path(location).name}"):
        encoders = {} if file.holds("text_encoder") else _encoders(index, location, model, parts)
        pipe = cls.from_single_file(
            str(file.path), config=location, dtype=getattr(torch, model.dtype), **{**encoders, **parts}
        )
    for name, component in networks_of(pipe).items():
        _refuse_incomplete(missing_of(component), PATH, file.name, name)
    return pipe


def _encoders(index: Mapping[str, Any], location: str, model: ModelSettings, given: Collection[str]) -> dict[str, Any]:
    """Return the networks of transformers, by name, from the folder or hub id that completes a file without them.

    diffusers 0.42.1 does not look for them there, and fails.

    Args:
        given: names of components that come from elsewhere.
    """
    classes = {
        name: simple_get_class_obj(*entry)
        for name, entry in index.items()
        if isinstance(entry, list) and entry[0] and name not in given
    }
    dtype = getattr(torch, model.dtype)
    return {
        name: cls.from_pretrained(location, subfolder=name, revision=model.revision, dtype=dtype)
        for name, cls in classes.items()
        if issubclass(cls, PreTrainedModel)
    }


@dataclass(frozen=True)
class _Target:
    """Pipeline that components are loaded for."""

    location: str
    """Local folder or hub id with the configurations."""
    model: ModelSettings
    variant: str | None
    """Variant of its weights."""
    missing_of: MissingOf

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.model.dtype)
        return found

    def class_of(self, name: str, key: str) -> Any:
        """Return the class of a component; None for one that the pipeline may have and has not.

        Raises:
            LoadError: the pipeline's class has no such component.
        """
        index = DiffusionPipeline.load_config(self.location, revision=self.model.revision)
        known = [each for each, entry in index.items() if isinstance(entry, list)]
        if name not in known:
            raise LoadError(f"{key}: {index.get('_class_name')} has no component {name}; it has: {', '.join(known)}")
        return simple_get_class_obj(*index[name]) if index[name][0] else None

    def from_file(self, cls: Any, name: str, file: CheckpointFile, key: str) -> torch.nn.Module:
        """Return a component from a file of its own, or from a file with a whole pipeline.

        Raises:
            LoadError: diffusers loads no such class from one file, or the file does not fit the configuration.
        """
        if cls is not None and issubclass(cls, PreTrainedModel):
            return self._encoder_from_file(cls, name, file, key)
        if file.svdquant is not None and cls is not None:
            return self._under_layers(cls, name, file, key)
        if cls is None or not issubclass(cls, _loadable()):
            called = cls.__name__ if cls else name
            raise LoadError(f"{key}: diffusers loads no {called} from one file such as {file.name}; {AS_FOLDER}")
        given: dict[str, Any] = {"config": self.location, "subfolder": name, "dtype": self.dtype}
        weights: Any = str(file.path)
        with _fitting(key, file.name, f"the {name} of {Path(self.location).name}"):
            if file.is_gguf:
                given["quantization_config"] = GGUFQuantizationConfig(compute_dtype=self.dtype)
            elif file.scheme is Scheme.SCALED_FP8:
                kept = DENOISER_PREFIXES if file.has_prefix else ("",)
                tensors = load_file(file.path)
                weights = dequantized({each: tensors[each] for each in tensors if each.startswith(kept)}, self.dtype)
            module: torch.nn.Module = cls.from_single_file(weights, config_revision=self.model.revision, **given)
        _refuse_incomplete(self.missing_of(module), key, file.name, name)
        return module

    def _under_layers(self, cls: Any, name: str, file: CheckpointFile, key: str) -> torch.nn.Module:
        """Return the pipeline's own component with the quantised layers of a file in place of its own."""
        given = {"revision": self.model.revision, "variant": self.variant, "dtype": self.dtype}
        with _fitting(key, file.name, f"the {name} of {Path(self.location).name}"):
            whole = cls.from_pretrained(self.location, subfolder=name, **given)
        _refuse_incomplete(self.missing_of(whole), key, Path(self.location).name, name)
        return svdquant.loaded_over(whole, file, key)

    def _encoder_from_file(
        self, cls: type[PreTrainedModel], name: str, file: CheckpointFile, key: str
    ) -> PreTrainedModel:
        with _fitting(key, file.name, f"the {name} of {Path(self.location).name}"):
            config = cls.config_class.from_pretrained(self.location, subfolder=name, revision=self.model.revision)
            encoder = load_encoder(cls, file, config, self.dtype)
        _refuse_incomplete(self.missing_of(encoder), key, file.name, name)
        return encoder

    def from_folder(self, cls: Any, name: str, source: ComponentSource) -> Any:
        """Return a component from a folder or a hub id. A class of diffusers that is named there wins.

        Raises:
            LoadError: its class is not told, or it cannot be loaded.
        """
        given: dict[str, Any] = {}
        if source.folder is not None:
            place, read = str(source.folder), in_folder(source.folder)
        else:
            place, hub = source.path, on_hub(source.path, None)
            prefix = ""
            if hub(INDEX) is not None:
                given["subfolder"], prefix = name, f"{name}/"

            def read(config: str) -> Mapping[str, Any] | None:
                return hub(prefix + config)

        own = next((found for config in CONFIGS if (found := read(config))), {}).get("_class_name")
        cls = getattr(diffusers, own, cls) if own else cls
        if cls is None:
            raise LoadError(f"{source.key}: {source.name} does not tell its class; name a folder of diffusers")
        if issubclass(cls, torch.nn.Module):
            given["dtype"] = self.dtype
        with _fitting(source.key, source.name, f"a {cls.__name__}"):
            component = cls.from_pretrained(place, **given)
        if isinstance(component, torch.nn.Module):
            _refuse_incomplete(self.missing_of(component), source.key, source.name, name)
        return component


def _loadable() -> tuple[type, ...]:
    return tuple(getattr(diffusers, name) for name in SINGLE_FILE_LOADABLE_CLASSES)


def _refuse_incomplete(missing: Sequence[str], key: str, file: str, name: str) -> None:
    """Refuse a file or folder that lacks weights of a component.

    Raises:
        LoadError: the message has the number of such weights, and the first.
    """
    if missing:
        raise LoadError(
            f"{key}: {file} lacks {len(missing)} weights of the {name}, such as {missing[0]}; take a file for this "
            "model, or another model.base"
        )


@contextmanager
def _fitting(key: str, file: str, wanted: str) -> Iterator[None]:
    """Turn diffusers' errors while a file is loaded into one that names the file.

    Raises:
        LoadError: the file does not fit; the library's own text is in the log alone.
    """
    try:
        yield
    except ImportError:
        raise
    except (SingleFileComponentError, AttributeError, IndexError, KeyError, OSError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        logger.exception("%s: loading %s failed", key, file)
        why = f"{file} does not fit {wanted}; take the model.base or model.path that it was made for"
        raise LoadError(f"{key}: {why}{DETAILS}") from error
