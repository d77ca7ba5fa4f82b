"""Libraries below the pipeline: their versions and their log levels."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from cache_dit_serving.logs import claim_loggers
from cache_dit_serving.pipeline import model_scan


def quiet_libraries() -> None:
    """Set the libraries' log levels so that the log holds what an operator acts on.

    To be called before cache-dit is imported: cache-dit 1.5.3 reads its level only then.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)  # torchao lists at each start what it lacks for other machines
    with first_import("diffusers"):
        import transformers

        model_scan.import_models()
        import diffusers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    claim_loggers()


@contextmanager
def first_import(library: str) -> Iterator[None]:
    """Spare the garbage collector the imports inside, and all objects that there are after them.

    Does nothing where the library has been imported. The 400,000 objects of torch, diffusers and cache-dit stay for
    good: collections among them are a fifth of the time of a start.
    """
    if library in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@functools.cache
def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("bentoml", "cache-dit", "diffusers", "torch", "transformers")}
