"""Size of a model's weights before it is loaded, by the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping

from cache_dit_serving.config.folder import is_folder
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.config.sources import NotDownloaded, UnusableSource, sources_of
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import folder_of, read_component_folders, read_model

NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Size of a number in bytes, of the types that are converted to the model's own as they are loaded."""
LOADED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Size of a number in bytes, by the model's type."""


def expected_bytes(model: ModelSettings) -> int:
    """Return the bytes that a model's weights will have in memory, before quantisation; 0 if its files do not tell.

    Files and folders on this machine tell it; those of the hub do not.
    """
    try:
        sources = sources_of(model, download=False)
        files = [sources.whole, *(each.file for each in sources.components.values())]
        contents = [each.dtypes for each in files if each is not None]
        contents += [each.bytes_by_dtype for each in read_component_folders(sources).values()]
        if sources.whole is None and is_folder(sources.location):
            folder = read_model(folder_of(sources.location, model), model, sources)
            contents += [each.weights.bytes_by_dtype for each in folder.components if each.weights is not None]
        return sum(_loaded_bytes(each, model.dtype) for each in contents)
    except (UnusableSource, NotDownloaded, BrokenFolder, OSError):
        return 0  # the load says what is wrong


def _loaded_bytes(by_dtype: Mapping[str, int], dtype: str) -> int:
    """Return the bytes of tensors in memory; quantised ones stay as they are in the file."""
    return sum(
        size // NUMBER_BYTES[name] * LOADED_BYTES[dtype] if name in NUMBER_BYTES else size
        for name, size in by_dtype.items()
    )
