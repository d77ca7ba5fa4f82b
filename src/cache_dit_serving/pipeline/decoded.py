"""Pipelines whose decoded output can stay on the device: those that do nothing with the output type of their own."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PROCESSORS = {"image_processor": "postprocess", "video_processor": "postprocess_video"}
"""Method that converts the decoded output, by the attribute of the pipeline that holds its processor."""


def gives_tensors(pipe: DiffusionPipeline) -> bool:
    """Return whether `output_type="pt"` gives the output of `"np"` as a tensor on the device.

    It does if the pipeline's call only compares the output type with `latent` and gives it to diffusers' own processor
    and to its check of inputs. Other pipelines convert to arrays by themselves, each in its own way.
    """
    attribute = _only_processor(inspect.unwrap(type(pipe).__call__))
    return attribute is not None and _is_plain(getattr(pipe, attribute, None))


@cache  # to find and parse the source takes a tenth of a second, and a model of several parts has a class for each
def _only_processor(call: Callable[..., Any]) -> str | None:
    """Return the attribute of the processor that alone has a use for a call's output type; None without one."""
    try:
        source = inspect.getsource(call)
    except (OSError, TypeError):  # no source at hand
        return None
    uses = list(_uses(ast.parse(textwrap.dedent(source))))
    processors = {name for use in uses if (name := _processor_of(use))}
    if len(processors) != 1 or not all(_processor_of(use) or _is_harmless(use) for use in uses):
        return None
    return processors.pop()


def _uses(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions that use the name `output_type`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword):
            continue  # its call is the use
        for child in ast.iter_child_nodes(node):
            value = child.value if isinstance(child, ast.keyword) else child
            if isinstance(value, ast.Name) and value.id == "output_type":
                yield node


def _processor_of(use: ast.AST) -> str | None:
    """Return the attribute of the processor whose conversion a use calls; None for another use."""
    for attribute, method in PROCESSORS.items():
        if isinstance(use, ast.Call) and ast.unparse(use.func) == f"self.{attribute}.{method}":
            return attribute
    return None


def _is_harmless(use: ast.AST) -> bool:
    if isinstance(use, ast.Call):
        return ast.unparse(use.func) == "self.check_inputs"
    return ast.unparse(use) in ("output_type == 'latent'", "output_type != 'latent'")


def _is_plain(processor: Any) -> bool:
    """Return whether a processor converts as diffusers' VaeImageProcessor and VideoProcessor do."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.video_processor import VideoProcessor

    cls = type(processor)
    if not issubclass(cls, VaeImageProcessor):
        return False
    own = {name: getattr(cls, name) for name in ("postprocess", "pt_to_numpy", "denormalize")}
    plain = all(method is getattr(VaeImageProcessor, name) for name, method in own.items())
    return plain and getattr(cls, "postprocess_video", None) in (None, VideoProcessor.postprocess_video)
