"""Space of the search: the settings and steps that the optimiser chooses from, as far as the model allows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cache_dit_serving.caching.derived import upstream_settings
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.step_masks import POLICIES
from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.fewer_steps import fewer_steps
from cache_dit_serving.measure.search.points import Point

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

CALIBRATORS: dict[str, dict[str, Any]] = {
    "none": {},
    **{f"taylorseer {order}": {"enable_taylorseer": True, "taylorseer_order": order} for order in (1, 2, 3)},
    "foca": {"enable_foca": True},
    "dmd": {"enable_dmd": True},
}
DECISIONS = ("threshold", "pattern", "policy")
"""Ways to choose the steps that reuse: by the residual difference, by a repeated pattern, by a mask policy."""
THRESHOLDS = (0.02, 0.9)
"""Bounds of the threshold; at 1 and above cache-dit always reuses, which the pattern covers."""
IN_A_ROW = (-1, 1, 2, 3, 4, 6, 8)
FEWEST = 0.25
"""Least share of the reference's steps that a cached point has."""
MASK_STEPS = 100
"""Steps that a pattern covers at least, so that requests of more steps than the reference's are served too."""
OTHER_PARTS = (1.0, 0.5, 2.0, 3.0)
"""Factors from the model's threshold to that of its further block lists."""


class Space:
    """Points of a model. Names of parameters are those of the study, and stay as they are for studies to be resumed."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._lists = list(dict.fromkeys(label.split(".", 1)[1] for label in subject.block_lists))

    @property
    def steps(self) -> int:
        """Steps of the reference."""
        return self._subject.steps

    def suggest(self, trial: BaseTrial) -> Point:
        """Return the point that a trial suggests; that of a finished trial is the point it had.

        Raises:
            ValueError: the trial was killed before all its parameters were chosen.
        """
        steps = trial.suggest_int("steps", self._fewest, self._subject.steps)
        blocks, longest = self._subject.shortest, self._subject.longest
        fields: dict[str, Any] = {
            "Fn_compute_blocks": trial.suggest_categorical("Fn", _up_to(max(1, min(blocks, longest - 1)), 1)),
            **CALIBRATORS[trial.suggest_categorical("calibrator", tuple(CALIBRATORS))],
        }
        # One block of the longest list is left to reuse.
        left = max(0, min(blocks, longest - 1) - fields["Fn_compute_blocks"])
        last = trial.suggest_categorical("Bn", (0, *_up_to(blocks, 1)))
        fields["Bn_compute_blocks"] = min(last, left)
        if len(self._subject.cache_types) > 1:
            fields["cache_type"] = trial.suggest_categorical("cache_type", self._subject.cache_types)
        decide = dict(zip(DECISIONS, (self._by_threshold, self._by_pattern, self._by_policy), strict=True))
        fields |= decide[trial.suggest_categorical("decision", DECISIONS)](trial, steps)
        return Point(steps, CacheSettings.model_validate(fields))

    def _by_threshold(self, trial: BaseTrial, steps: int) -> dict[str, Any]:
        threshold = _rounded(trial.suggest_float("threshold", *THRESHOLDS, log=True))
        fields: dict[str, Any] = {
            "residual_diff_threshold": threshold,
            "max_warmup_steps": self._warm_up(trial, "warm_up", steps),
            "max_continuous_cached_steps": trial.suggest_categorical("in_a_row", IN_A_ROW),
        }
        for name in self._subject.transformers[1:]:
            own = _rounded(trial.suggest_float(f"threshold of {name}", *THRESHOLDS, log=True))
            warm_up = self._warm_up(trial, f"warm_up of {name}", steps)
            fields.setdefault("per_transformer", {})[name] = {
                "residual_diff_threshold": own,
                "max_warmup_steps": warm_up,
            }
        if len(self._subject.transformers) == 1:
            for name in self._lists[1:]:
                factor = trial.suggest_categorical(f"factor of {name}", OTHER_PARTS)
                if factor != 1.0:
                    scaled = _rounded(min(THRESHOLDS[1], threshold * factor))
                    fields.setdefault("per_block_list", {})[name] = {"residual_diff_threshold": scaled}
        return fields

    def _by_pattern(self, trial: BaseTrial, steps: int) -> dict[str, Any]:
        return pattern(self._warm_up(trial, "warm_up", steps), trial.suggest_int("reused", 1, 6), steps)

    def _by_policy(self, trial: BaseTrial, steps: int) -> dict[str, Any]:
        return {
            "steps_computation_mask": trial.suggest_categorical("policy", POLICIES),
            "steps_computation_policy": "static",
        }

    def _warm_up(self, trial: BaseTrial, name: str, steps: int) -> int:
        return min(trial.suggest_int(name, 1, self._longest_warm_up), max(1, steps - 1))

    @property
    def _fewest(self) -> int:
        steps = self._subject.steps
        return min(steps, max(self._subject.least_steps, 2, round(steps * FEWEST)))

    @property
    def _longest_warm_up(self) -> int:
        return max(2, self._subject.steps // 3)

    def parameters_of(self, point: Point) -> dict[str, Any] | None:
        """Return the parameters that suggest a point; None if the space has none for it, as for an uncached one."""
        settings = point.settings
        if settings is None or len(self._subject.block_lists) > 1:
            return None
        calibrator = next((name for name, fields in CALIBRATORS.items() if fields == _switches(settings)), None)
        parameters = {
            "steps": point.steps,
            "Fn": settings.Fn_compute_blocks,
            "Bn": settings.Bn_compute_blocks,
            "calibrator": calibrator,
            "cache_type": settings.cache_type,
            "decision": DECISIONS[0],
            "threshold": settings.residual_diff_threshold,
            "warm_up": settings.max_warmup_steps,
            "in_a_row": settings.max_continuous_cached_steps,
        }
        if len(self._subject.cache_types) < 2:
            del parameters["cache_type"]
        within = THRESHOLDS[0] <= settings.residual_diff_threshold <= THRESHOLDS[1]
        if not self._fewest <= point.steps <= self._subject.steps:
            return None
        if not within or not 1 <= settings.max_warmup_steps <= self._longest_warm_up:
            return None
        from optuna.trial import FixedTrial

        try:
            found = self.suggest(FixedTrial(parameters))
        except ValueError:  # a choice that the space does not have
            return None
        return parameters if found.key == point.key else None

    def fixed(self) -> dict[str, Point]:
        """Return the points that every search measures, by label.

        They are the uncached runs of fewer steps, cache-dit's defaults, and the speeds of the configuration.
        """
        subject = self._subject
        points = {point.described(): point for point in fewer_steps(subject.steps, subject.least_steps)}
        if not subject.cache_types:
            return points
        points["cache-dit's command line"] = Point(subject.steps, upstream_settings(subject.steps))
        library = CacheSettings()
        fits = min(library.Fn_compute_blocks, subject.shortest)
        shown = "" if fits == library.Fn_compute_blocks else f" (Fn {fits}, the shortest list's blocks)"
        points[f"cache-dit's library{shown}"] = Point(subject.steps, library.overridden({"Fn_compute_blocks": fits}))
        points |= {f"configured {speed}": point for speed, point in subject.configured.items()}
        return points


def pattern(warm_up: int, reused: int, steps: int) -> dict[str, Any]:
    """Return the settings of a static mask: a warm-up, then `reused` steps for each computed one."""
    times = math.ceil(max(MASK_STEPS, 2 * steps) / (1 + reused))
    mask = {"compute_bins": [warm_up, *[1] * (times - 1)], "cache_bins": [reused] * times}
    return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


def _up_to(most: int, least: int) -> tuple[int, ...]:
    """Return the powers of two between two bounds, and the least."""
    return tuple(dict.fromkeys([least, *(1 << power for power in range(10) if least <= 1 << power <= most)]))


def _switches(settings: CacheSettings) -> dict[str, Any]:
    """Return the switch of the calibrator and TaylorSeer's order, as `CALIBRATORS` has them."""
    switches: dict[str, Any] = {settings.calibrator: True} if settings.calibrator else {}
    return switches | ({"taylorseer_order": settings.taylorseer_order} if settings.enable_taylorseer else {})


def _rounded(threshold: float) -> float:
    """Return a threshold with two significant digits: closer ones differ by less than their measurement can tell."""
    return float(f"{threshold:.2g}")
