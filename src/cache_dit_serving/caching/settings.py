"""Settings of cache-dit's cache as one frozen value, shared by the configuration, requests and answers.

The fields are the keys of `cache_config` in `cache_dit.load_configs` (cache-dit 1.5.3), checked here because cache-dit
drops unknown keys and fails on the string "DBPrune". See cache-dit's user guide for DBCache and DBPrune,
arXiv:2503.06923 for TaylorSeer and arXiv:2508.16211 for FoCa.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cache_dit_serving.caching.parts import NO_PARTS, PARTS, HashableDict, Parts
from cache_dit_serving.caching.step_masks import MOST_STEPS, AnyMask, fitted, tuple_of_list

ReasonCode = Literal[
    "off",
    "unsupported",
    "within_warmup",
    "above_threshold",
    "mask_computes_all",
    "none_allowed",
    "conditions_not_met",
    "not_a_number",
    "limited",
]
CacheType = Literal["DBCache", "DBPrune"]
CACHE_TYPES: tuple[CacheType, ...] = typing.get_args(CacheType)


class Reason(NamedTuple):
    """Reason that the cache is off, reused nothing or was limited: a code for programs, a sentence for people."""

    code: ReasonCode
    sentence: str


CALIBRATORS: dict[str, tuple[str, ...]] = {
    "enable_taylorseer": ("enable_encoder_taylorseer", "taylorseer_cache_type", "taylorseer_order"),
    "enable_foca": ("enable_encoder_foca",),
    "enable_dmd": ("enable_encoder_dmd", "dmd_history", "dmd_rank", "dmd_ridge", "dmd_svd_precision"),
}
"""Switch of each calibrator, with the fields that take effect only beside it."""
PRUNE_FIELDS = (
    "enable_dynamic_prune_threshold",
    "max_dynamic_prune_threshold",
    "dynamic_prune_threshold_relax_ratio",
    "non_prune_block_ids",
    "force_reduce_calibrator_vram",
)


class CacheFields(BaseModel):
    """Every setting of the cache with its own bounds. :class:`CacheSettings` checks that they agree with each other."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cache_type: CacheType = Field(
        "DBCache", description="DBCache reuses all blocks between Fn and Bn together; DBPrune decides for each block."
    )
    Fn_compute_blocks: int = Field(
        8, ge=1, description="First n blocks, always computed; reuse is decided by their residual."
    )
    Bn_compute_blocks: int = Field(0, ge=0, description="Last n blocks, always computed, to correct the reused part.")
    residual_diff_threshold: float = Field(
        0.08, ge=0, description="Reuse below this relative L1 difference; 1 and more: always; 0: never."
    )
    max_accumulated_residual_diff_threshold: float | None = Field(
        None, gt=0, description="Reuse until the differences add up to this."
    )
    max_warmup_steps: int = Field(8, ge=0, le=MOST_STEPS, description="First steps, always computed.")
    warmup_interval: int = Field(1, ge=1, le=MOST_STEPS, description="Compute every n-th step of the warm-up only.")
    max_cached_steps: int = Field(-1, ge=-1, description="Reuse at most this often; -1: no limit.")
    max_continuous_cached_steps: int = Field(-1, ge=-1, description="Reuse at most this often in a row; -1: no limit.")
    enable_separate_cfg: bool | None = Field(
        None, description="Guidance takes a second forward pass; left out: as each request's guidance requires."
    )
    cfg_compute_first: bool = Field(False, description="The pipeline makes the guided pass first.")
    cfg_diff_compute_separate: bool = Field(
        True, description="Each pass decides by a difference of its own; always so with DBPrune."
    )
    steps_computation_mask: AnyMask | None = Field(
        None,
        description="Steps that compute. A policy, slow, medium, fast or ultra (for 4, 6, or 8 and more steps); bins "
        "{compute_bins: [6, 1, 1], cache_bins: [2, 3]}, cut to a request's steps, which they must cover; or a list "
        "of 1 and 0 for that number of steps alone. The leading 1s are the warm-up.",
    )
    steps_computation_policy: Literal["dynamic", "static"] = Field(
        "dynamic", description="Reuse of the mask's 0 steps. dynamic: below the threshold; static: always."
    )
    force_refresh_step_hint: int | None = Field(
        None,
        ge=1,
        description="Restart the cache (warm-up, mask and counts) after this many forward passes; a step has two "
        "with separate guidance.",
    )
    force_refresh_step_policy: Literal["once", "repeat"] = Field(
        "once", description="Restart once, or after each such number of passes."
    )

    per_transformer: Parts = Field(
        default_factory=HashableDict,
        description="Settings that differ for one transformer, by its component: transformer_2 of Wan 2.2.",
    )
    per_block_list: Parts = Field(
        default_factory=HashableDict,
        description="Settings that differ for one block list, by its name; they override its transformer's.",
    )

    enable_dynamic_prune_threshold: bool = Field(
        False, description="DBPrune: let the threshold follow the differences."
    )
    max_dynamic_prune_threshold: float | None = Field(
        None, gt=0, description="Bound of the dynamic threshold; left out: twice residual_diff_threshold."
    )
    dynamic_prune_threshold_relax_ratio: float = Field(
        1.25, gt=0, description="Factor from a step's mean difference to the dynamic threshold."
    )
    non_prune_block_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=MOST_STEPS, description="DBPrune: blocks to compute."
    )
    force_reduce_calibrator_vram: bool = Field(False, description="DBPrune: compare a quarter of the values.")

    enable_taylorseer: bool = Field(
        False, description="Calibrator TaylorSeer: extrapolate reused values by a Taylor series."
    )
    enable_encoder_taylorseer: bool = Field(False, description="Extrapolate the prompt's states too.")
    taylorseer_cache_type: Literal["residual", "hidden_states"] = Field(
        "residual", description="Values that TaylorSeer works on."
    )
    taylorseer_order: int = Field(1, ge=1, le=4, description="Order of the Taylor series.")
    enable_foca: bool = Field(False, description="Calibrator FoCa: forecast reused values, then calibrate them.")
    enable_encoder_foca: bool = Field(False, description="Forecast the prompt's states too.")
    enable_dmd: bool = Field(
        False, description="Calibrator DMD: extrapolate reused values by dynamic mode decomposition."
    )
    enable_encoder_dmd: bool | None = Field(
        None, description="Extrapolate the prompt's states too; left out: with enable_dmd."
    )
    calibrator_cache_type: Literal["residual", "hidden_states"] = Field(
        "residual", description="Values that FoCa and DMD work on."
    )
    dmd_history: int = Field(6, ge=4, le=32, description="Snapshots; below 4 cache-dit would fall back to TaylorSeer.")
    dmd_rank: int = Field(
        0, ge=0, description="Rank at which the snapshots' decomposition is truncated; 0: chosen from the spectrum."
    )
    dmd_ridge: float = Field(1e-8, ge=0, description="Tikhonov term added to the inverted singular values.")
    dmd_svd_precision: Literal["low", "medium", "high"] = Field(
        "medium", description="Precision of the singular value decomposition; low is randomised."
    )

    @field_validator("cache_type", mode="before")
    @classmethod
    def _cache_type_by_any_of_its_names(cls, value: object) -> object:
        # The spellings cache_dit.caching.cache_types.cache_type accepts.
        names = {"DBCACHE": "DBCache", "DB_CACHE": "DBCache", "DB": "DBCache", "DUAL_BLOCK_CACHE": "DBCache"}
        names |= {"DBPRUNE": "DBPrune", "DB_PRUNE": "DBPrune", "DBP": "DBPrune", "DYNAMIC_BLOCK_PRUNE": "DBPrune"}
        return names.get(value.upper(), value) if isinstance(value, str) else value

    _lists = field_validator("steps_computation_mask", "non_prune_block_ids", mode="before")(tuple_of_list)


class CacheSettings(CacheFields):
    """Consistent cache settings of one generation: immutable, comparable, hashable."""

    num_inference_steps: int | None = Field(
        None, ge=1, description="Accepted because cache-dit's files hold it; each request's own number takes its place."
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        on = [switch for switch in CALIBRATORS if getattr(self, switch)]
        if len(on) > 1:
            names = " and ".join(switch.removeprefix("enable_") for switch in on)
            raise _contradiction(on[-1], f"only one calibrator can be enabled, not {names}")
        for switch, dependants in CALIBRATORS.items():
            idle = [name for name in dependants if name in self.model_fields_set]
            if idle and not getattr(self, switch):
                raise _contradiction(idle[0], f"{', '.join(idle)} has no effect without {switch}: true")
        prune_only = [name for name in PRUNE_FIELDS if name in self.model_fields_set]
        if prune_only and self.cache_type != "DBPrune":
            raise _contradiction(prune_only[0], f"{', '.join(prune_only)} has no effect without cache_type: DBPrune")
        if self.cache_type == "DBPrune":
            self._check_prune()
        if self.cfg_compute_first and self.cfg_diff_compute_separate:
            raise _contradiction("cfg_compute_first", "cfg_compute_first: true needs cfg_diff_compute_separate: false")
        mask = self.steps_computation_mask
        if isinstance(mask, tuple) and (not mask or not mask[0]):
            sentence = "steps_computation_mask must begin with 1: there is nothing to reuse in the first step"
            raise _contradiction("steps_computation_mask", sentence)
        self._check_parts()
        return self

    def _check_parts(self) -> None:
        for field in PARTS:
            for part, settings in getattr(self, field).items():
                idle = self._idle() & settings.given.keys()
                if idle or not settings.given:
                    what = sorted(idle)[0] if idle else "it"
                    raise _contradiction(
                        field, f"{field}.{part}: {what} has no effect" + (" beside the other settings" if idle else "")
                    )

    def _check_prune(self) -> None:
        """Refuse settings that DBPrune ignores or computes wrongly in cache-dit 1.5.3."""
        if "max_accumulated_residual_diff_threshold" in self.model_fields_set:
            name = "max_accumulated_residual_diff_threshold"
            raise _contradiction(name, f"{name} has no effect with cache_type: DBPrune, which adds no differences up")
        if not self.cfg_diff_compute_separate:
            sentence = "cfg_diff_compute_separate: false does not work with cache_type: DBPrune"
            raise _contradiction("cfg_diff_compute_separate", sentence)
        most = self.max_dynamic_prune_threshold
        if most is not None and most <= self.residual_diff_threshold:
            sentence = "max_dynamic_prune_threshold has no effect unless it is above residual_diff_threshold"
            raise _contradiction("max_dynamic_prune_threshold", sentence)
        # DBPrune stores the residual of the prompt's states, and later reads it as the states.
        if self.enable_encoder_taylorseer and self.taylorseer_cache_type == "hidden_states":
            sentence = "taylorseer_cache_type: hidden_states with enable_encoder_taylorseer does not work with DBPrune"
            raise _contradiction("taylorseer_cache_type", sentence)
        encoder = self.enable_encoder_foca or (self.enable_dmd and self.enable_encoder_dmd is not False)
        if encoder and self.calibrator_cache_type == "hidden_states":
            sentence = "calibrator_cache_type: hidden_states with an encoder calibrator does not work with DBPrune"
            raise _contradiction("calibrator_cache_type", sentence)

    def effective(self) -> dict[str, Any]:
        """Return the settings that take effect, as JSON values.

        Fields of a disabled calibrator are left out, and DBPrune's fields with DBCache. Sent as the `cache` object of a
        request, the result has the same effect over any base settings.
        """
        said = self.model_dump(mode="json", exclude=self._idle())
        for field in PARTS:
            if field in said:
                said[field] = {part: settings.given for part, settings in getattr(self, field).items()}
        return said

    def _idle(self) -> set[str]:
        """Return the fields that have no effect beside the others."""
        idle = {"num_inference_steps", "enable_separate_cfg", *(field for field in PARTS if not getattr(self, field))}
        for switch, dependants in CALIBRATORS.items():
            if not getattr(self, switch):
                idle |= set(dependants)
        if not (self.enable_foca or self.enable_dmd):
            idle.add("calibrator_cache_type")
        if self.cache_type != "DBPrune":
            idle |= set(PRUNE_FIELDS)
        else:
            idle.add("max_accumulated_residual_diff_threshold")
            if not self.enable_dynamic_prune_threshold:
                idle |= {"max_dynamic_prune_threshold", "dynamic_prune_threshold_relax_ratio"}
            if self.calibrator is None:
                idle.add("force_reduce_calibrator_vram")
        if self.residual_diff_threshold >= 1:  # nothing is compared, so nothing adds up
            idle.add("max_accumulated_residual_diff_threshold")
        if self.steps_computation_mask is None:
            idle.add("steps_computation_policy")
        else:  # the mask's leading 1s are the warm-up
            idle |= {"max_warmup_steps", "warmup_interval"}
        if self.reuses_without_asking:
            idle |= {"residual_diff_threshold", "max_accumulated_residual_diff_threshold", "max_cached_steps"}
            idle |= {"max_continuous_cached_steps", "enable_dynamic_prune_threshold", "max_dynamic_prune_threshold"}
            idle |= {"dynamic_prune_threshold_relax_ratio"}
        if self.force_refresh_step_hint is None:
            idle.add("force_refresh_step_policy")
        return idle

    def digest(self) -> str:
        """Return the settings' hash, ten hexadecimal digits; equal for settings of equal effect."""
        return _digest(self)

    def same_effect(self, other: CacheSettings | None) -> bool:
        return other is not None and self.effective() == other.effective()

    def overridden(self, given: Mapping[str, Any]) -> CacheSettings:
        """Return these settings with some fields replaced.

        Fields that the replacements leave without effect are dropped: a new calibrator replaces the current one,
        `cache_type: DBCache` drops DBPrune's fields. A replaced field holds for every part, unless `given` has the
        parts too.

        Raises:
            pydantic.ValidationError: the fields contradict each other.
        """
        kept = {name: getattr(self, name) for name in self.model_fields_set - {"num_inference_steps"}}
        chosen = [switch for switch in CALIBRATORS if given.get(switch)]
        for switch, dependants in CALIBRATORS.items():
            if given.get(switch) is False or (chosen and switch not in chosen):
                for name in (switch, *dependants):
                    kept.pop(name, None)
        if given.get("cache_type") == "DBCache":
            for name in PRUNE_FIELDS:
                kept.pop(name, None)
        if given.get("cache_type") == "DBPrune":
            for name in ("max_accumulated_residual_diff_threshold", "cfg_diff_compute_separate", "cfg_compute_first"):
                kept.pop(name, None)
        together = {**kept, **given}
        whole = CacheSettings.model_validate({**together, **dict.fromkeys(PARTS, NO_PARTS)})
        dropped = given.keys() | whole._idle()
        for field in set(PARTS) - given.keys():
            left = {
                part: {name: value for name, value in settings.given.items() if name not in dropped}
                for part, settings in together.get(field, NO_PARTS).items()
            }
            together[field] = {part: values for part, values in left.items() if values}
        return CacheSettings.model_validate(together)

    @property
    def _differs_by_part(self) -> bool:
        return bool(self.per_transformer or self.per_block_list)

    def of(self, transformer: str | None, block_list: str | None) -> CacheSettings:
        """Return the settings of one block list of one transformer; None stands for a name without own settings."""
        if not self._differs_by_part:
            return self
        parts = (self.per_transformer.get(transformer or ""), self.per_block_list.get(block_list or ""))
        changes = {name: value for part in parts if part is not None for name, value in part.given.items()}
        return self.model_copy(update={**changes, **dict.fromkeys(PARTS, NO_PARTS)})

    def parts(self, *others: CacheSettings) -> list[tuple[str | None, str | None]]:
        """Return the pairs (transformer, block list) for which these settings or `others` may differ.

        None in a pair stands for all names without own settings. (None, None) is the first.
        """
        transformers = sorted({name for settings in (self, *others) for name in settings.per_transformer})
        lists = sorted({name for settings in (self, *others) for name in settings.per_block_list})
        return [(transformer, name) for transformer in (None, *transformers) for name in (None, *lists)]

    def mask(self, steps: int) -> list[int] | None:
        """Return the step mask for a number of steps, None without one; raises as :func:`step_masks.fitted`."""
        return None if self.steps_computation_mask is None else fitted(self.steps_computation_mask, steps)

    def max_difference_by_step(self, steps: int, *, passes: int) -> list[float]:
        """Return, for each step, the greatest residual difference at which it may be reused.

        0: the step is always computed; infinity: it is always reused. The greatest value of all parts counts.

        Args:
            passes: forward passes a step: 2 if guidance makes a separate one, else 1.
        """
        if self._differs_by_part:
            by_part = [self.of(*part).max_difference_by_step(steps, passes=passes) for part in self.parts()]
            return [max(thresholds) for thresholds in zip(*by_part, strict=True)]
        mask = self.mask(steps)
        threshold = self.residual_diff_threshold
        if self.cache_type == "DBPrune" and self.enable_dynamic_prune_threshold:
            threshold = max(threshold, self.max_dynamic_prune_threshold or 2 * threshold)
        if self.reuses_without_asking:
            threshold = math.inf

        def of_step(step: int) -> float:
            local = self._since_refresh(step, passes)
            if local == 0:
                return 0.0
            # cache-dit cuts the warm-up to the mask's leading 1s, which compute by themselves.
            computed = mask[local] if mask is not None else self._warms_up(local)
            return 0.0 if computed else threshold

        return [of_step(step) for step in range(steps)]

    def _since_refresh(self, step: int, passes: int) -> int:
        """Return the step's number since the last forced refresh, where mask and warm-up restart."""
        if self.force_refresh_step_hint is None:
            return step
        every = max(1, self.force_refresh_step_hint // passes)
        if self.force_refresh_step_policy == "repeat":
            return step % every
        return step - every if step >= every else step

    def _warms_up(self, step: int) -> bool:
        return step < self.max_warmup_steps and step % self.warmup_interval == 0

    def cannot_engage(self, steps: int, *, passes: int) -> Reason | None:
        """Return the reason that no step can be reused in any part, if the settings alone decide it; else None."""
        if self._differs_by_part:
            reasons = [self.of(*part).cannot_engage(steps, passes=passes) for part in self.parts()]
            return None if None in reasons else reasons[0]
        if any(self.max_difference_by_step(steps, passes=passes)):
            if not self.reuses_without_asking and 0 in (self.max_cached_steps, self.max_continuous_cached_steps):
                return Reason("none_allowed", "the settings allow no cached step")
            return None
        if self.steps_computation_mask is not None and self.force_refresh_step_hint is None:
            return Reason("mask_computes_all", "the step mask computes every step")
        if self.residual_diff_threshold == 0 and not self.reuses_without_asking:
            return Reason("none_allowed", "a threshold of 0 allows no cached step")
        if self.force_refresh_step_hint is not None:
            return Reason("within_warmup", "each refresh begins a new warm-up, and no step is left between them")
        warm_up = max(1, self.max_warmup_steps)
        return Reason("within_warmup", f"{steps} steps are no more than the {warm_up} of the warm-up")

    def calibration(self) -> dict[str, Any]:
        """Return the settings of the enabled calibrator; empty without one."""
        names = {"calibrator_cache_type", "force_reduce_calibrator_vram"}
        names |= {name for switch, dependants in CALIBRATORS.items() for name in (switch, *dependants)}
        return {name: value for name, value in self.effective().items() if self.calibrator and name in names}

    @property
    def calibrator(self) -> str | None:
        """Switch of the enabled calibrator; None if all are off."""
        return next((switch for switch in CALIBRATORS if getattr(self, switch)), None)

    @property
    def reuses_without_asking(self) -> bool:
        """True if the mask's 0 steps are reused at any difference and beyond any limit (a static mask)."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"


@functools.lru_cache(maxsize=256)
def _digest(settings: CacheSettings) -> str:
    text = json.dumps(settings.effective(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _contradiction(field: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{sentence}", {"sentence": sentence, "field": field})


def _without_defaults(schema: dict[str, Any]) -> None:
    """Drop cache-dit's defaults from the schema: a field that a request leaves out takes the server's value."""
    for name, field in schema["properties"].items():
        if name in CacheFields.model_fields:
            field.pop("default", None)


class CacheOptions(CacheFields):
    """The `cache` object of a request. Its fields override those of the named speed, or of the server's default."""

    model_config = ConfigDict(strict=True, json_schema_extra=_without_defaults)

    enabled: bool = Field(True, description="Run a cache (default true); false: no cache for this request.")
    strict: bool = Field(
        False,
        description="If the cache reuses nothing, answer 409 with the evidence instead of an output (default false).",
    )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that the request names."""
        names = self.model_fields_set - {"enabled", "strict"}
        return {name: getattr(self, name) for name in CacheFields.model_fields if name in names}
