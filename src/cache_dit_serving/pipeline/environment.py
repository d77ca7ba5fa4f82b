"""Libraries below the pipeline: their versions and their log levels."""

from __future__ import annotations

import functools
import logging
import os
import sys
from importlib.metadata import version

from cache_dit_serving.logs import claim_loggers


def quiet_libraries() -> None:
    """Set the libraries' log levels so that the log holds what an operator acts on.

    To be called before cache-dit is imported: cache-dit 1.5.3 reads its level only then.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)  # torchao lists at each start what it lacks for other machines
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
    claim_loggers()


@functools.cache
def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("bentoml", "cache-dit", "diffusers", "torch", "transformers")}
