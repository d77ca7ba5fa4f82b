"""Loading of a pipeline: location of the model, class that loads it, device, and refusal of what cannot be served."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.import_utils import DummyObject, requires_backends

from cache_dit_serving.config import folder, hub
from cache_dit_serving.config.hub_file import HUB_ID, hub_file
from cache_dit_serving.config.settings import ModelSettings, RequestDefaults, Settings
from cache_dit_serving.config.sources import Sources, UnusableSource, sources_of, unreachable
from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import folder_of, read_component_folders, read_model
from cache_dit_serving.model_folder.variant import variant_on_hub
from cache_dit_serving.pipeline import components, placing, quantize
from cache_dit_serving.pipeline.arguments import SET_BY_THE_SERVER
from cache_dit_serving.pipeline.memory import needing_memory
from cache_dit_serving.pipeline.missing_tensors import loaded_whole
from cache_dit_serving.pipeline.random_weights import random_pipeline
from cache_dit_serving.pipeline.samplers import check_keys
from cache_dit_serving.planning.families import family_of
from cache_dit_serving.planning.fields import PIPELINE_FIELDS
from cache_dit_serving.planning.tasks import SERVED_TASKS, Task
from cache_dit_serving.planning.traits import PipelineTraits

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "embedded" / "emoji-flux"
SIBLINGS = (
    (Task.TEXT_TO_IMAGE, Task.IMG2IMG, "Img2Img"),
    (Task.TEXT_TO_IMAGE, Task.INPAINT, "Inpaint"),
    (Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO, "ImageToVideo"),
    (Task.TEXT_TO_VIDEO, Task.VIDEO_TO_VIDEO, "VideoToVideo"),
)
"""(task, further task, infix): diffusers 0.42 has a class for the further task on the same weights, with the infix in
its name."""
MISSING_PACKAGE = re.compile(
    r"requires the ([\w-]+) library|`(\w+)` is not installed|`pip install (?:-U |--upgrade )?'?([\w-]+)"
    r"|No package metadata was found for ([\w-]+)"
)
"""Names of packages in the texts of transformers and diffusers."""


class Located(NamedTuple):
    """Place of a model's weights."""

    path: str
    """Local folder or hub id."""
    variant: str | None
    sources: Sources
    """Files and folders that replace the place's weights."""


def load_pipeline(
    settings: Settings, progress: Callable[[str], None], located: Located | None = None
) -> DiffusionPipeline:
    """Return the pipeline in host memory, in evaluation mode and without progress bars.

    Random weights are made on the device instead, unless components are offloaded.

    Args:
        located: place of the model; None: it is found out.

    Raises:
        LoadError: the model is not there, is not a pipeline, does not fit into memory, or needs a missing package.
    """
    model, quantization = settings.model, settings.quantize
    if model.cpu_threads:
        torch.set_num_threads(model.cpu_threads)
    location, variant, sources = located or locate(model)
    cls = pipeline_class(model.pipeline_class)
    dtype = getattr(torch, model.dtype)
    of_variant = f", variant {variant}," if variant else ""
    progress(f"loading the weights of {public_name(model.path)}{of_variant} as {model.dtype}")
    options = {"revision": model.revision, "variant": variant}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if model.device_map is not None:
        given["device_map"] = model.device_map
    with _told(model):
        if quantization is not None:
            index = DiffusionPipeline.load_config(location, revision=model.revision)
            given["quantization_config"] = quantize.as_loaded(quantization, list(index))
            if given["quantization_config"] and sources.mixed:
                raise LoadError(
                    "quantize: this type quantises a folder's weights as they are read, not model.components or a "
                    "single file; take another type"
                )
        try:
            if model.weights == "random":
                if given.get("quantization_config"):
                    raise LoadError(
                        "model.weights: random ones are not read, so not quantised on reading; take another type"
                    )
                logger.warning("the weights are random (model.weights): outputs mean nothing")
                device = torch.device("cpu") if model.offload else choose_device(model.device)
                pipe = random_pipeline(cls, location, model, device, progress)
            else:
                parts = components.load_parts(sources, location, model, variant, progress)
                if sources.whole is not None:
                    pipe = components.load_whole(cls, sources.whole, location, parts, model)
                else:
                    pipe = loaded_whole(partial(cls.from_pretrained, location, dtype=dtype, **parts, **given))
        except AttributeError:
            _require_packages(DiffusionPipeline.load_config(location, revision=model.revision))
            raise
    if model.scheduler:
        pipe.scheduler = _changed(pipe.scheduler, model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    if family_of(type(pipe).__name__).decodes_tiles_alone:
        pipe.vae.enable_tiling()
    return pipe


@contextmanager
def _told(model: ModelSettings) -> Iterator[None]:
    """Turn the libraries' exceptions while a model is loaded into errors that callers may see.

    Raises:
        LoadError: the loading failed; the library's own text is in the log alone.
    """
    try:
        with needing_memory("the model does not fit into memory"):
            yield
    except ImportError as error:
        logger.exception("loading %s failed", model.path)
        raise LoadError(_without_package(str(error))) from error
    except (OSError, ValueError, KeyError) as error:
        # The library's text names paths and hosts: it goes to the log, not to callers.
        logger.exception("loading %s failed", model.path)
        raise LoadError("the model's files could not be loaded" + DETAILS) from error


def _changed(scheduler: SchedulerMixin, changes: Mapping[str, Any]) -> SchedulerMixin:
    """Return a scheduler of the same class with some keys of its configuration changed.

    Raises:
        LoadError: the class has no such key.
    """
    cls = type(scheduler)
    check_keys(cls, changes, "model.scheduler")
    return cls.from_config(scheduler.config, **changes)


def _require_packages(index: Mapping[str, Any]) -> None:
    """Check the packages of the model's class, if diffusers has replaced the class by a stand-in.

    diffusers 0.42 fails on its own stand-in with an AttributeError that does not name the missing packages.

    Raises:
        ImportError: a package is missing; the message names it.
    """
    stand_in = getattr(diffusers, index["_class_name"], None)
    if isinstance(stand_in, DummyObject):
        requires_backends(stand_in, stand_in._backends)


def _without_package(text: str) -> str:
    """Return the remedy for a failed import, a sentence for callers, from the text of transformers or diffusers."""
    named = MISSING_PACKAGE.search(text)
    if named is None:
        return "the model needs a package that is not installed" + DETAILS
    package = next(filter(None, named.groups())).lower()
    remedy = "pip install -r requirements-vision.txt" if package == "torchvision" else f"install {package}"
    return f"the model needs the package {package}, which is not installed: {remedy}"


def siblings_of(pipe: DiffusionPipeline, tasks: frozenset[Task]) -> list[DiffusionPipeline]:
    """Return pipelines for further tasks that share the components of `pipe`.

    Args:
        tasks: tasks of `pipe`.
    """
    siblings: list[DiffusionPipeline] = []
    stem = type(pipe).__name__.removesuffix("Pipeline")
    for own, task, infix in SIBLINGS:
        cls = getattr(diffusers, f"{stem}{infix}Pipeline", None)
        if cls is None or own not in tasks or task in tasks:
            continue
        if task is Task.IMAGE_TO_VIDEO and not _animates(pipe):
            continue
        # DiffusionPipeline.from_pipe would cast every component to one dtype.
        known = {name: value for name, value in pipe.config.items() if not name.startswith("_")} | pipe.components
        taken = inspect.signature(cls.__init__).parameters
        # Wan's class for video to video does not take the second transformer of Wan 2.2.
        if any(value and name not in taken for name, value in known.items()):
            continue
        parts = {name: value for name, value in known.items() if name in taken}
        if scheduler := parts.get("scheduler"):
            # aMUSEd's sibling changes its scheduler's configuration as it is made.
            parts["scheduler"] = type(scheduler).from_config(scheduler.config)
        sibling = cls(**parts)
        sibling.set_progress_bar_config(disable=True)
        placing.share(pipe, sibling)
        siblings.append(sibling)
    return siblings


def _animates(pipe: DiffusionPipeline) -> bool:
    """Return whether a text-to-video pipeline's weights also work in its family's image-to-video class."""
    # In other families image-to-video has weights of its own, with more channels.
    return family_of(type(pipe).__name__).animates or bool(pipe.config.get("expand_timesteps"))


def choose_device(name: str | None) -> torch.device:
    """Return the named device; for None the accelerator if there is one, else the CPU.

    Raises:
        LoadError: torch does not know the device, or the machine does not have it.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.empty(0, device=accelerator or "cpu").device
    try:
        device = torch.device(name)
        return torch.empty(0, device=device).device  # a device with its index
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoadError(f"device {name!r} is not available here") from error


def choose_generator(name: str, device: torch.device) -> torch.device:
    """Return the device that draws the noise: the CPU or the model's device.

    Raises:
        LoadError: `name` is another device.
    """
    chosen = choose_device(name)
    if chosen.type not in ("cpu", device.type):
        raise LoadError(f"model.generator_device {name!r} is neither cpu nor the model's device, {device}")
    return device if chosen.type == device.type else chosen


def locate(model: ModelSettings) -> Located:
    """Return the arguments of `from_pretrained` for a model, and the sources of its other weights.

    Raises:
        LoadError: its path is neither a folder, a file nor a hub id, a file or the folder cannot be loaded, a
            transformer alone has no base, or the weights are quantised in a way that is not supported.
    """
    sources = _sources(model)
    path = sources.location
    if path == EMBEDDED:
        return Located(str(EMBEDDED_FOLDER), model.variant, sources)
    local = folder.is_folder(path)
    try:
        if not local and model.subfolder is None:
            return Located(path, variant_on_hub(path, model, sources), sources)
        with _told(model):
            found = folder_of(path, model) if local else hub.downloaded(path, model.revision, model.subfolder or "")
        quantize.check_saved(found)
        return Located(str(found), read_model(found, model, sources).variant, sources)
    except BrokenFolder as error:
        raise LoadError(str(error)) from error


def _sources(model: ModelSettings) -> Sources:
    if model.path != EMBEDDED and (why := folder.refusal(model.path)):
        raise LoadError(why)
    try:
        sources = sources_of(model)
        read_component_folders(sources)
    except UnusableSource as error:
        raise LoadError(str(error)) from error
    if why := unreachable(sources, model.revision):
        raise LoadError(why)
    return sources


def public_name(path: str) -> str:
    """Return the model's name for callers: a hub id, or the folder's or file's name without its path on the server."""
    if not folder.is_there(path) and (named := hub_file(path)) is not None:
        return named.file_name
    return Path(path).name if folder.is_there(path) or not HUB_ID.fullmatch(path) else path


def pipeline_class(name: str | None) -> type[DiffusionPipeline]:
    """Return the class that loads the model: the named one, or DiffusionPipeline, which reads it from the model.

    Raises:
        LoadError: diffusers has no pipeline class of this name.
    """
    if name is None:
        return DiffusionPipeline
    cls: object = getattr(diffusers, name, None)
    if isinstance(cls, type) and issubclass(cls, DiffusionPipeline):
        return cls
    raise LoadError(f"diffusers {diffusers.__version__} has no pipeline class {name!r}")


def check_servable(traits: PipelineTraits, defaults: RequestDefaults) -> None:
    """Refuse a pipeline for tasks that this server does not serve, and configured arguments that it does not take.

    Raises:
        LoadError: the message names the task, or the argument with the reason.
    """
    if not traits.tasks & SERVED_TASKS:
        found, served = (", ".join(sorted(tasks)) for tasks in (traits.tasks, SERVED_TASKS))
        raise LoadError(f"{traits.pipeline_class} is for {found}; this version serves {served}")
    for name in defaults.pipeline_arguments:
        if name in PIPELINE_FIELDS | SET_BY_THE_SERVER:
            raise LoadError(f"defaults.pipeline_arguments: {name} is set by requests or the server, not there")
        if not traits.takes(name):
            raise LoadError(f"defaults.pipeline_arguments: {traits.pipeline_class} does not take {name!r}")
