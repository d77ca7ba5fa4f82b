"""A safety check by a Python function of the operator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from cache_dit_serving.errors import ConfigError

Check = Callable[[Mapping[str, Any]], Any]
"""A check: the subject in, `{"verdict": ..., "reason": ...}` out."""


def function_named(name: str) -> Check:
    """Import the function `package.module:function`.

    Raises:
        ConfigError: it cannot be imported, is no function, or is a coroutine function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"safety.check {name}: {module_name} cannot be imported ({why})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"safety.check {name}: {module_name} has no function {function_name}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"safety.check {name}: {function_name} is a coroutine function; make it a plain one")
    found: Check = function
    return found
