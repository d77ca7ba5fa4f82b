"""Arguments of a pipeline's call that a request may set by their own names: those whose type JSON can express."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import types
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from cache_dit_serving.planning.tasks import PARAMETERS, SOUND_LENGTHS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SCALARS = (bool, int, float, str, type(None))
_BOUND = re.compile(r"max_sequence_length > (\d+)")

SET_BY_THE_SERVER = frozenset(
    (
        *(name for names in PARAMETERS.values() for name in names),
        *("generator", "latents", "output_type", "return_dict"),
        *("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"),
        *("frames", "frame_rate", "max_area", "timesteps", "audio_start_in_s", *SOUND_LENGTHS),
        *("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    )
)
"""Arguments that follow from a request's fields, or that would change the number of outputs or steps."""


def extra_arguments_of(cls: type[DiffusionPipeline], fields: frozenset[str]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that are neither request fields nor the server's, with their types.

    A type such as `torch.Tensor | float` is reduced to the part that JSON has. Lists hold numbers only: a list of texts
    is a batch, and one call makes one output.
    """
    call = inspect.unwrap(cls.__call__)
    found = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if name == "self" or name in fields or name in SET_BY_THE_SERVER:
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                # Evaluates the library's own source, as typing.get_type_hints does; one by one, as some do not resolve.
                annotation = eval(annotation, call.__globals__)
            except (NameError, TypeError, AttributeError):
                continue  # a name that is imported for type checkers only
        kind = _in_json(annotation)
        if kind not in (None, type(None)):
            found[name] = kind
    return found


def longest_sequence(cls: type[DiffusionPipeline]) -> int | None:
    """Return the greatest max_sequence_length that a class accepts, in tokens; None if it checks none.

    The bound is read from the source of `check_inputs`, the only place that has it.
    """
    check = getattr(cls, "check_inputs", None)
    bounds = _BOUND.findall(inspect.getsource(check)) if check is not None else []
    return int(bounds[0]) if bounds else None


def _in_json(annotation: Any) -> Any:
    """Return the part of a type that JSON can express; None if there is none."""
    if annotation in SCALARS or annotation is None:
        return type(None) if annotation is None else annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        members = [kind for member in arguments if (kind := _in_json(member)) is not None]
        return functools.reduce(operator.or_, members) if members else None
    if origin in (list, tuple) and arguments and all(_of_numbers(member) for member in arguments):
        return annotation
    return None


def _of_numbers(annotation: Any) -> bool:
    if annotation in (int, float, ...):
        return True
    return get_origin(annotation) in (list, tuple) and all(_of_numbers(member) for member in get_args(annotation))
