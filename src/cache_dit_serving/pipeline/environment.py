"""The libraries that the pipeline runs on: their versions, and what they say in the log."""

from __future__ import annotations

import functools
import logging
import os
import sys
from importlib.metadata import version

from cache_dit_serving.logs import claim_loggers


def quiet_libraries() -> None:
    """Keep the log to what an operator acts on. Before the imports: cache-dit 1.5.3 reads its level only then."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)  # torchao tells at each start what it lacks for other machines
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
