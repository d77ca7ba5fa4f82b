"""`cache-dit-serving config`: prints the settings of a start with the same flags and variables."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cache_dit_serving.cli.flags import parser
from cache_dit_serving.cli.serve import environment_of, or_embedded
from cache_dit_serving.config.printed import printed
from cache_dit_serving.config.reading import resolve
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.supervisor import fail

DESCRIPTION = """\
Print the settings that `cache-dit-serving serve` with the same flags and environment would have, as YAML, and exit.
A comment names the file, variable or flag that set a value; a value without one is a default. Secrets are not printed.

Later ones win: defaults, then the configuration's file, then variables CACHE_DIT_SERVING__SECTION__KEY, then flags.

  examples:
    cache-dit-serving config                                      the embedded model's settings
    cache-dit-serving config --model-path /models/flux --cache    which configuration a folder gets, and why
    CACHE_DIT_SERVING__LIMITS__MAX_QUEUE=8 cache-dit-serving config --config qwen-image | grep '#'
"""


def main(arguments: Sequence[str]) -> int:
    """Print the settings tree. Invalid settings end the process with one line and exit status 2."""
    flags = parser("cache-dit-serving config", DESCRIPTION).parse_args(arguments)
    try:
        print(printed(resolve(environment_of(flags, or_embedded(flags, os.environ)))), end="")
    except ConfigError as error:
        fail(str(error))
    return 0
