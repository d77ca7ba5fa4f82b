"""Schedulers of a pipeline: its own, and those that requests may choose in its place."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.import_utils import DummyObject

from cache_dit_serving.config.schedulers import FOR_FLOW, FOR_NOISE, NO_SPACING, OWN, KnownScheduler, OfferedScheduler
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.planning.samplers import Sampler, SamplerChoice, SamplerTraits

logger = logging.getLogger(__name__)

SHIFTS = ("shift", "flow_shift")
"""Keys of a static shift, by class; a scheduler has one of them or none."""


class Unusable(Exception):
    """Error for a scheduler that the pipeline cannot draw with. Its message may be shown to callers."""


class Samplers:
    """Schedulers of one pipeline, by the names by which requests choose them."""

    def __init__(self, pipe: DiffusionPipeline, offered: Mapping[str, OfferedScheduler]) -> None:
        """
        Raises:
            LoadError: diffusers has no scheduler class of a name, or the class no key of a name.
        """
        self._pipe = pipe
        self._templates: dict[str, SchedulerMixin] = {}
        """Scheduler for each offered name but that of the model's own. They are copied, never used."""
        own = getattr(pipe, "scheduler", None)
        self.traits: SamplerTraits | None = None
        if not isinstance(own, SchedulerMixin):
            return
        name = _name_of(own, offered)
        refused: dict[str, str] = {}
        for other, settings in offered.items():
            try:
                template = _made(other, settings, own)
                _check_fits(template, pipe)
            except Unusable as error:
                refused[other] = str(error)
                logger.warning("scheduler %s is not offered: %s", other, error)
                continue
            if other != name:
                self._templates[other] = template
        self.traits = SamplerTraits(
            own=_own_traits(name, own, offered=name in offered),
            offered=tuple(_traits(other, template) for other, template in self._templates.items()),
            refused=refused,
        )

    @contextmanager
    def used(self, choice: SamplerChoice | None) -> Iterator[None]:
        """Give the pipeline the scheduler of a call during the body.

        It is a new one, since a scheduler keeps the state of its run. The model's own with its own shift stays the one
        that was loaded: each call of a pipeline resets it.
        """
        chosen = None if choice is None else self._fresh(choice)
        if chosen is None:
            yield
            return
        own, self._pipe.scheduler = self._pipe.scheduler, chosen
        try:
            yield
        finally:
            self._pipe.scheduler = own

    def _fresh(self, choice: SamplerChoice) -> SchedulerMixin | None:
        """Return a new scheduler for a call; None for the model's own as it is."""
        template = self._templates.get(choice.name)
        if choice.shift is not None:
            template = template or self._pipe.scheduler
            return type(template).from_config(template.config, **_static_shift(template, choice.shift))
        return None if template is None else copy.deepcopy(template)


def check_keys(cls: type[SchedulerMixin], keys: Mapping[str, Any], setting: str) -> None:
    """Refuse keys that a scheduler's class does not have.

    Args:
        setting: dotted key of the setting that holds them.

    Raises:
        LoadError: the message names the key and those that the class has.
    """
    known = _keys(cls)
    for key in keys:
        if key not in known:
            raise LoadError(f"{setting}.{key}: {cls.__name__} has no such key; it has: {', '.join(known)}")


def _keys(cls: type[SchedulerMixin]) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)[1:]


def _name_of(own: SchedulerMixin, offered: Mapping[str, OfferedScheduler]) -> str:
    """Return the known name of the model's own scheduler; `default` if none fits, or it is offered changed."""
    known = FOR_FLOW if _is_flow(own) else FOR_NOISE
    for name, row in known.items():
        changed = name in offered and (offered[name].config or offered[name].scheduler_class)
        keys = row.changes.items()
        if type(own).__name__ == row.scheduler_class and all(
            own.config.get(key, value) == value for key, value in keys
        ):
            return OWN if changed else name
    return OWN


def _made(name: str, settings: OfferedScheduler, own: SchedulerMixin) -> SchedulerMixin:
    """Return the scheduler of an offered name, with the configuration of the model's own where the two agree.

    Raises:
        LoadError: as :class:`Samplers`.
        Unusable: a package is missing, the name is for other models, or the configuration is not possible.
    """
    setting = f"model.schedulers.{name}"
    known = None if settings.scheduler_class else _known(name, settings, own)
    cls = _class(settings.scheduler_class or (known.scheduler_class if known else None), own, setting)
    check_keys(cls, settings.config, f"{setting}.config")
    has = _keys(cls)
    config = {key: value for key, value in (known.changes if known else {}).items() if key in has}
    shift = next((own.config[key] for key in SHIFTS if own.config.get(key) is not None), None)
    if shift is not None:
        config |= {key: shift for key in SHIFTS if key in has}
    try:
        return cls.from_config(own.config, **{**config, **settings.config})
    except ImportError as error:
        raise Unusable(f"{cls.__name__} with these keys needs a package that is not installed (scipy)") from error
    except (ValueError, NotImplementedError, TypeError) as error:
        logger.info("%s cannot be made", setting, exc_info=True)
        raise Unusable(f"{cls.__name__} does not take this configuration ({summary(error)})") from error


def _known(name: str, settings: OfferedScheduler, own: SchedulerMixin) -> KnownScheduler | None:
    """Return the known scheduler of a name for models of this kind; None if a configuration alone defines it."""
    rows, others = (FOR_FLOW, FOR_NOISE) if _is_flow(own) else (FOR_NOISE, FOR_FLOW)
    if name in others and name not in rows and not settings.config:
        raise Unusable(f"there is no {name} for {_kind(own)} models")
    return rows.get(name)


def _class(name: str | None, own: SchedulerMixin, setting: str) -> type[SchedulerMixin]:
    if name is None:
        return type(own)
    cls: object = getattr(diffusers, name, None)
    if isinstance(cls, DummyObject):
        raise Unusable(f"{name} needs the package {', '.join(cls._backends)}, which is not installed")
    if isinstance(cls, type) and issubclass(cls, SchedulerMixin):
        return cls
    raise LoadError(
        f"{setting}.scheduler_class: diffusers {diffusers.__version__} has no scheduler class of this name, {name}"
    )


def _check_fits(scheduler: SchedulerMixin, pipe: DiffusionPipeline) -> None:
    """Refuse a scheduler for other predictions than the pipeline's, or for scaled noise that it does not make.

    Either would draw noise without any error.

    Raises:
        Unusable: the message has the reason.
    """
    cls, own = type(scheduler).__name__, pipe.scheduler
    if _is_flow(scheduler) != _is_flow(own):
        raise Unusable(f"{cls} as configured is for {_kind(scheduler)} models; this model is for {_kind(own)}")
    scales = ("init_noise_sigma", "scale_model_input")
    if getattr(scheduler, "init_noise_sigma", 1.0) != 1.0 and not all(_reads(pipe, name) for name in scales):
        raise Unusable(f"{cls} needs its noise scaled, which {type(pipe).__name__} does not do")


def _reads(pipe: DiffusionPipeline, name: str) -> bool:
    """Return whether a pipeline's code reads an attribute of its scheduler."""
    for cls in type(pipe).__mro__:
        if cls.__module__.startswith("diffusers.pipelines.") and cls is not DiffusionPipeline:
            try:
                if f"scheduler.{name}" in inspect.getsource(cls):
                    return True
            except (OSError, TypeError):
                continue  # a class of our own bears the name of its base
    return False


def _is_flow(scheduler: SchedulerMixin) -> bool:
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return bool(flow) or type(scheduler).__name__.startswith("FlowMatch")


def _kind(scheduler: SchedulerMixin) -> str:
    return "flow-matching" if _is_flow(scheduler) else "noise-predicting"


def _has_shift(scheduler: SchedulerMixin) -> bool:
    has = _keys(type(scheduler))
    return _is_flow(scheduler) and any(key in has for key in SHIFTS)


def _static_shift(scheduler: SchedulerMixin, shift: float) -> dict[str, Any]:
    """Return the keys that give a scheduler a static shift."""
    has = _keys(type(scheduler))
    keys: dict[str, Any] = {key: shift for key in SHIFTS if key in has}
    return keys | ({"use_dynamic_shifting": False} if "use_dynamic_shifting" in has else {})


def _takes_shift(scheduler: SchedulerMixin) -> bool:
    """Return whether a request may set the shift of a scheduler.

    A pipeline whose shift follows the size passes it (`mu`) in any case, and DPM++ of diffusers 0.42 fails on it if its
    own shift is static.
    """
    if not _has_shift(scheduler) or not scheduler.config.get("use_dynamic_shifting"):
        return _has_shift(scheduler)
    shifted = type(scheduler).from_config(scheduler.config, **_static_shift(scheduler, 1.0))
    return _evaluations(shifted, 8, mu=1.0) is not None


def _own_traits(name: str, own: SchedulerMixin, *, offered: bool) -> Sampler:
    """Return the traits of a model's own scheduler.

    Its schedule is counted only if each step predicts more than once: some families' schedulers take their timesteps in
    ways of their own.
    """
    traits = _traits(name, own)
    traits = replace(traits, takes_shift=traits.takes_shift and offered)
    return traits if getattr(own, "order", 1) > 1 else replace(traits, per_step=1, further=0)


def _traits(name: str, scheduler: SchedulerMixin) -> Sampler:
    config, set_timesteps = scheduler.config, getattr(scheduler, "set_timesteps", None)
    has = {} if set_timesteps is None else inspect.signature(set_timesteps).parameters
    shift = None if config.get("use_dynamic_shifting") else next((config[key] for key in SHIFTS if key in config), None)
    counts = {steps: _evaluations(scheduler, steps) for steps in (8, 16, 24)}
    per_step, further = 1, 0
    if all(counts.values()):
        first, second, third = (count or 0 for count in counts.values())
        if (second - first) % 8 == 0 and second - first == third - second:
            per_step = (second - first) // 8
            further = first - 8 * per_step
    return Sampler(
        name=name,
        scheduler_class=type(scheduler).__name__,
        per_step=per_step,
        further=further,
        least_steps=1 if _evaluations(scheduler, 1) else 2,
        takes_sigmas="sigmas" in has
        and not config.get("use_flow_sigmas")
        and not any(config.get(spacing) for spacing in NO_SPACING),
        shift=shift if _has_shift(scheduler) else None,
        takes_shift=_takes_shift(scheduler),
    )


def _evaluations(scheduler: SchedulerMixin, steps: int, **given: float) -> int | None:
    """Return the number of predictions in a schedule of `steps` steps; None if it cannot be made, or is not finite."""
    scheduler = copy.deepcopy(scheduler)
    if scheduler.config.get("use_dynamic_shifting"):
        given = {"mu": 1.0}
    try:
        scheduler.set_timesteps(steps, **given)
        schedule = [scheduler.timesteps, getattr(scheduler, "sigmas", scheduler.timesteps)]
        finite = all(bool(torch.as_tensor(values).double().isfinite().all()) for values in schedule)
        return len(scheduler.timesteps) if finite else None
    except Exception:  # noqa: BLE001 (schedulers fail on a schedule in many ways)
        return None
