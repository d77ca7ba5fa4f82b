"""Which arguments of a pipeline's call a request may set by their own names: those that JSON can say."""

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
"""Arguments of calls that follow from a request's fields, or that would change how many outputs or steps there are."""


def extra_arguments_of(cls: type[DiffusionPipeline], fields: frozenset[str]) -> dict[str, Any]:
    """The arguments of a pipeline's call that are neither fields of requests nor the server's, each with its type.

    Of a type in part, such as `torch.Tensor | float`, the part that JSON has. Lists hold numbers: a list of texts is a
    batch, and one call makes one output.
    """
    call = inspect.unwrap(cls.__call__)
    found = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if name == "self" or name in fields or name in SET_BY_THE_SERVER:
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                # The library's own source, as typing.get_type_hints does; one by one, since some do not resolve.
                annotation = eval(annotation, call.__globals__)
            except (NameError, TypeError, AttributeError):
                continue  # a name that exists for type checkers alone
        kind = _in_json(annotation)
        if kind not in (None, type(None)):
            found[name] = kind
    return found


def longest_sequence(cls: type[DiffusionPipeline]) -> int | None:
    """The greatest max_sequence_length that a class checks for; None where it checks none.

    Classes say so in the source of `check_inputs` alone.
    """
    check = getattr(cls, "check_inputs", None)
    bounds = _BOUND.findall(inspect.getsource(check)) if check is not None else []
    return int(bounds[0]) if bounds else None


def _in_json(annotation: Any) -> Any:
    """The part of a type that JSON has; None where there is none."""
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
