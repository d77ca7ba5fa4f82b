"""Section `speeds` of the settings tree: a model's named cache settings, and the figures measured with them."""

from __future__ import annotations

import typing
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.section import Section

Speed = Literal["lossless", "high", "balanced", "fast"]
"""Names of the speeds, least approximation first; `lossless` runs no cache."""


class FloorSettings(Section):
    """Likeness that nine in ten outputs of a speed reach against the same seeds without a cache, by measure."""

    flip: float | None = Field(None, ge=0, le=1, description="FLIP, at most; of pictures and videos.")
    ssim: float | None = Field(None, ge=-1, le=1, description="SSIM, at least; of pictures and videos.")
    psnr_db: float | None = Field(
        None, ge=0, le=100, description="PSNR in dB, at least; of pictures and videos. Equal outputs have 100."
    )
    flicker: float | None = Field(None, ge=0, le=2, description="Flicker, at most; of videos.")
    snr_db: float | None = Field(
        None, ge=-100, le=100, description="SNR in dB, at least; of sounds. Equal outputs have 100."
    )
    spectral_db: float | None = Field(None, ge=0, description="Log-spectral distance in dB, at most; of sounds.")

    @property
    def given(self) -> dict[str, float]:
        """Floors by measure, those that are set."""
        return self.model_dump(exclude_none=True)


class MeasuredSpeed(Section):
    """Speed-up and image quality of one speed, against the same seeds without a cache; see `measured_on`."""

    settings_hash: str = Field(
        description="Hash of the measured settings; with others, or other steps, the figures are void."
    )
    num_inference_steps: int = Field(ge=1, description="Steps of each measured generation.")
    speedup: float = Field(gt=0, description="Median of uncached seconds / seconds.")
    psnr_db: float = Field(description="Median, dB.")
    psnr_db_worst_decile: float = Field(description="A tenth of the pictures are worse.")
    ssim: float = Field(le=1, description="Median.")
    ssim_worst_decile: float = Field(le=1, description="A tenth of the pictures are worse.")
    cached_steps: float = Field(ge=0, description="Mean, of num_inference_steps.")


class SpeedSettings(Section):
    """One named speed: its cache settings and number of steps, and the figures measured with them."""

    cache: CacheSettings | None = Field(None, description="Cache settings; left out: derived from the section `cache`.")
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        description="Denoising steps of a request at this speed that names none; left out: the model's default.",
    )
    floors: FloorSettings = Field(
        FloorSettings(), description="Floors of this speed, in place of `speeds.floors` of the same measure."
    )
    measured: MeasuredSpeed | None = Field(None, description="Figures measured with these settings.")

    @field_validator("cache")
    @classmethod
    def _no_fact_of_the_family(cls, cache: CacheSettings | None) -> CacheSettings | None:
        if cache is not None and cache.enable_separate_cfg is not None:
            raise ValueError(
                "enable_separate_cfg is a fact of the family, not of a speed: it stands in the section cache"
            )
        return cache


class SpeedsSettings(Section):
    """Named cache settings of this model. `lossless` is no cache; a speed left out is derived and marked unmeasured."""

    default: Speed | None = Field(
        None, description="Speed of a request without `speed` and `cache`; left out: the section `cache`."
    )
    ceiling: Speed | None = Field(
        None, description="Least exact speed that a request may choose, by name or by settings; left out: no limit."
    )
    warm_up: bool = Field(
        False,
        description="Draw one whole output at each speed before ready, so that `deadline_s` has measured rates from "
        "the first request.",
    )
    measured_on: str | None = Field(None, description="Hardware, prompts, versions and date of the figures.")
    floors: FloorSettings = Field(
        FloorSettings(), description="Likeness that nine in ten outputs of every speed reach, by measure."
    )
    high: SpeedSettings = Field(SpeedSettings(), description="The speed `high`: its settings and figures.")
    balanced: SpeedSettings = Field(SpeedSettings(), description="The speed `balanced`.")
    fast: SpeedSettings = Field(SpeedSettings(), description="The speed `fast`.")

    @model_validator(mode="after")
    def _default_within_ceiling(self) -> Self:
        names = typing.get_args(Speed)
        if self.default and self.ceiling and names.index(self.default) > names.index(self.ceiling):
            raise ValueError(f"default {self.default} is above the ceiling {self.ceiling}")
        return self

    def floors_of(self, speed: Speed) -> dict[str, float]:
        """Return the floors of a speed by measure: those of every speed, changed by its own; empty for `lossless`."""
        if speed == "lossless":
            return {}
        own: SpeedSettings = getattr(self, speed)
        return self.floors.given | own.floors.given
