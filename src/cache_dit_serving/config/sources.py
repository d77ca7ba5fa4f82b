"""Places that a model is loaded from: its folder, a file in place of it, and folders or files of single components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile, Kind
from cache_dit_serving.checkpoints.families import DENOISER_PREFIXES
from cache_dit_serving.checkpoints.schemes import SCALE, Scheme
from cache_dit_serving.checkpoints.svdquant import svdquant_file_in
from cache_dit_serving.config import hub
from cache_dit_serving.config.folder import INDEX, in_folder, is_dangling, is_file, is_folder
from cache_dit_serving.config.hub_file import HUB_ID, hub_file
from cache_dit_serving.config.settings import EMBEDDED_MODEL, ModelSettings
from cache_dit_serving.safetensors_header import PICKLES, UnreadableFile

COMPONENT_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that a component's folder has one of."""
PATH = "model.path"
TRANSFORMER = "transformer"
UNET = "unet"
ELSEWHERE = {
    Kind.LORA: "give it in model.loras, and the model that it is for in model.path",
    Kind.VAE: "give it in model.components as vae, and the model in model.path",
    Kind.TEXT_ENCODER: "give it in model.components as text_encoder, text_encoder_2 ..., and the model in model.path",
    Kind.IMAGE_ENCODER: "give it in model.components as image_encoder, and the model in model.path",
    Kind.CONTROLNET: "it is not served; name a pipeline, or a transformer alone",
    Kind.UNKNOWN: "name a pipeline, or a transformer alone",
}
"""The place for a file of another kind than a pipeline or a transformer."""
KIND_OF = {
    UNET: Kind.UNET,
    "vae": Kind.VAE,
    TRANSFORMER: Kind.DENOISER,
    "text_encoder": Kind.TEXT_ENCODER,
    "image_encoder": Kind.IMAGE_ENCODER,
}
"""Kind of a component's file, by the beginning of the component's name."""
ENCODERS = frozenset({Kind.TEXT_ENCODER, Kind.IMAGE_ENCODER})
"""Kinds that transformers loads, in place of diffusers."""
IN_GGUF = frozenset({Kind.DENOISER, Kind.TEXT_ENCODER})
"""Kinds that are loaded from GGUF."""


class NotDownloaded(Exception):
    """A file of the hub's is there, and its kind is known only after the download."""


class UnusableSource(Exception):
    """A path of the model's settings cannot be loaded. The message has the file's name, the reason and the remedy."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        """Dotted key of the setting."""
        self.reason = reason


@dataclass(frozen=True)
class ComponentSource:
    """Place of a component's weights."""

    path: str
    """File, folder or hub id."""
    file: CheckpointFile | None
    """Contents, if it is a file."""
    folder: Path | None
    """Folder of the component itself, or of a pipeline that has it."""
    key: str
    """Dotted key of the setting that names it."""

    @property
    def name(self) -> str:
        """Name for callers: a hub id, or the last part of the path."""
        if self.file is not None:
            return self.file.name
        return self.path if self.folder is None else Path(self.path).name


@dataclass(frozen=True)
class Sources:
    """Places that a model is loaded from."""

    location: str
    """Folder or hub id of a pipeline: its configurations, and the components that no other source has."""
    whole: CheckpointFile | None
    """File with a whole pipeline; None: the weights are in `location`."""
    components: Mapping[str, ComponentSource]
    """Sources of single components, by name."""

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the components whose weights in `location` are not read.

        Layers of cache-dit's SVDQuant replace some of a transformer's, whose other weights are read there.
        """
        return frozenset(
            name for name, each in self.components.items() if each.file is None or each.file.svdquant is None
        )

    @property
    def mixed(self) -> bool:
        """True if anything comes from elsewhere than the folder or hub id."""
        return self.whole is not None or bool(self.components)


def sources_of(model: ModelSettings, *, download: bool = True) -> Sources:
    """Return the places that a model is loaded from. Of files only the headers are read.

    Args:
        download: False: of files on the hub the headers are read there.

    Raises:
        UnusableSource: a file cannot be loaded, or a transformer alone has no `model.base`.
        NotDownloaded: a file's header can be read only after a download, which is not wanted.
    """
    components = {name: _component(name, path, download) for name, path in model.components.items()}
    if (file := _file_at(model.path, PATH, download)) is not None:
        if file.kind is Kind.PIPELINE:
            _refuse_layers_alone(components, file)
            return Sources(_base_of(file, model.base), file, components)
        if file.kind in ELSEWHERE:
            raise UnusableSource(PATH, f"{file.name} is {_a(file)} ({file.format}): {ELSEWHERE[file.kind]}")
        alone = ComponentSource(model.path, file, None, PATH)
        name = UNET if file.kind is Kind.UNET else TRANSFORMER
        if model.base is None:
            raise UnusableSource(PATH, _without_base(alone))
        return Sources(model.base, None, {name: alone, **components})
    path = Path(model.path).expanduser()
    if is_folder(model.path) and not is_file(str(path / INDEX)) and (cls := _class_of(path)):
        alone = ComponentSource(model.path, None, path, PATH)
        if model.base is None:
            raise UnusableSource(PATH, _without_base(alone, cls))
        name = UNET if cls.startswith("UNet") else TRANSFORMER
        return Sources(model.base, None, {name: alone, **components})
    if model.base is not None:
        raise UnusableSource(
            "model.base",
            "it completes a transformer alone or a single file; model.path names a whole pipeline. "
            "Leave it out, or replace parts by model.components",
        )
    return Sources(model.path, None, components)


def _refuse_layers_alone(components: Mapping[str, ComponentSource], whole: CheckpointFile) -> None:
    """Refuse quantised layers beside a file that holds the whole pipeline: those lie over a transformer in a folder."""
    for each in components.values():
        if each.file is not None and each.file.svdquant is not None:
            raise UnusableSource(
                each.key,
                f"{each.name} has quantised layers alone, for a transformer that is a folder's; give that folder or "
                f"its hub id in place of {whole.name}",
            )


def unreachable(sources: Sources, revision: str | None) -> str | None:
    """Return the reason that the hub id which completes a file cannot be read, with the remedy; None: it can be."""
    location = sources.location
    if not sources.mixed or location == EMBEDDED_MODEL or is_folder(location):
        return None
    if not HUB_ID.fullmatch(location):
        return f"model.base: {Path(location).name} is neither a folder on the server nor a hub id like owner/name"
    why = hub.refusal(location, revision)
    return f"model.base: {location} {why}; a folder with its configurations does without the hub" if why else None


def _base_of(file: CheckpointFile, base: str | None) -> str:
    """Return the folder or hub id with the configurations of a whole pipeline in one file."""
    if base is not None:
        return base
    if file.family is None:
        raise UnusableSource(
            PATH,
            f"{file.name} is a {file.described()}, of no family that is known here: name a folder or hub id with the "
            "configurations of its components as model.base",
        )
    return file.family.hub_id


def _without_base(alone: ComponentSource, cls: str | None = None) -> str:
    """Return the refusal of a transformer without the folder that completes it."""
    file = alone.file
    what = f"{file.kind} ({file.format})" if file else f"{cls} alone"
    family = file.family if file else None
    fits = f", such as {family.hub_id}" if family else ""
    return (
        f"{alone.name} is a {what}: it has no text encoder, VAE, scheduler and tokenizer. Name a folder or hub id that "
        f"has them as model.base{fits}"
    )


def _class_of(folder: Path) -> str | None:
    """Return the diffusers class of a component that `save_pretrained` wrote alone into a folder."""
    config = in_folder(folder)("config.json") or {}
    cls = config.get("_class_name")
    return cls if isinstance(cls, str) else None


def _a(file: CheckpointFile) -> str:
    return f"{'an' if file.kind in (Kind.UNKNOWN, Kind.IMAGE_ENCODER) else 'a'} {file.kind}"


def _file_at(path: str, key: str, download: bool) -> CheckpointFile | None:
    """Return the contents of the file that a path names, on this machine or on the hub; None: it names no file."""
    if is_file(path):
        place = Path(path).expanduser()
        return _usable(key, place.name, lambda: CheckpointFile.read(place))
    if is_folder(path) and (found := _svdquant_in(Path(path).expanduser(), key)) is not None:
        return _usable(key, found.name, lambda: CheckpointFile.read(found))
    named = hub_file(path)
    if named is None or is_folder(path):
        return None
    name = named.file_name
    try:
        hub.check_file(named)
        if download or hub.cached(*named) is not None:
            return _usable(key, name, lambda: CheckpointFile.read(hub.downloaded_file(named)))
    except hub.NotOnHub as error:
        raise UnusableSource(key, f"{path!r} is no file on the server; on the hub, {named.hub_id} {error}") from error
    except UnreadableFile as error:
        raise UnusableSource(key, f"{name}: {error}") from error
    header = hub.header_on_hub(named)
    if header is None:
        raise NotDownloaded(name)
    return _usable(key, name, lambda: CheckpointFile.of(Path(name), header))


def _svdquant_in(folder: Path, key: str) -> Path | None:
    try:
        return svdquant_file_in(folder)
    except UnreadableFile as error:
        raise UnusableSource(key, f"{folder.name}: {error}") from error


def _usable(key: str, name: str, read: Callable[[], CheckpointFile]) -> CheckpointFile:
    """Return the contents of a file that may be loaded.

    Raises:
        UnusableSource: it is damaged, or of a format that is not loaded.
    """
    try:
        file = read()
    except UnreadableFile as error:
        raise UnusableSource(key, f"{name}: {error}") from error
    if file.refusal:
        raise UnusableSource(key, f"{file.name}: {file.refusal}")
    if file.is_gguf and file.kind is not Kind.DENOISER and file.kind not in ELSEWHERE:
        raise UnusableSource(
            key, f"{file.name} is {_a(file)} in GGUF: diffusers loads transformers alone; take one, or safetensors"
        )
    if file.scheme is Scheme.SCALED_FP8 and file.kind is Kind.PIPELINE:
        others = [name for name in file.tensors if name.endswith(SCALE) and not name.startswith(DENOISER_PREFIXES)]
        if others:
            raise UnusableSource(
                key,
                f"{file.name}: its text encoder is in scaled FP8 ({others[0]}), which is applied to transformers "
                "alone; take the transformer alone with model.base",
            )
    return file


def _component(name: str, path: str, download: bool) -> ComponentSource:
    key = f"model.components.{name}"
    if (file := _file_at(path, key, download)) is not None:
        if why := _misplaced(name, file):
            raise UnusableSource(key, f"{file.name} is {_a(file)} ({file.format}): {why}")
        return ComponentSource(path, file, None, key)
    found = Path(path).expanduser()
    if is_folder(path):
        places = (found / name, found) if is_file(str(found / INDEX)) else (found,)
        configs = ((place, str(place / config)) for place in places for config in COMPONENT_CONFIGS)
        place = next((place for place, config in configs if is_file(config)), None)
        if place is None:
            raise UnusableSource(key, f"the folder {found.name} has no {name}: no {' or '.join(COMPONENT_CONFIGS)}")
        return ComponentSource(path, None, place, key)
    if is_dangling(path):
        raise UnusableSource(key, f"{found.name} is a link without a target on the server")
    if found.suffix in {".safetensors", ".gguf", *PICKLES} or not HUB_ID.fullmatch(path):
        raise UnusableSource(key, "it is neither a file or folder on the server nor a hub id like owner/name")
    return ComponentSource(path, None, None, key)


def _misplaced(name: str, file: CheckpointFile) -> str | None:
    """Return the reason that a file is not for a component, with the remedy; None: it may be."""
    wanted = next((kind for start, kind in KIND_OF.items() if name.startswith(start)), None)
    if wanted is None:
        return f"diffusers loads no {name} from one file; name a folder that save_pretrained wrote"
    if file.is_gguf and wanted not in IN_GGUF:
        return f"no {name} is loaded from GGUF; take a safetensors file"
    if file.kind is wanted or (file.kind is Kind.PIPELINE and wanted not in ENCODERS):
        return None
    if file.kind is Kind.PIPELINE:
        return f"no {name} is taken out of a whole pipeline; take a file or folder of its own"
    return f"that is no {name}"
