"""Speeds that a gate draws, and the floors that each is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_dit_serving.caching.speed_settings import MeasuredSpeed, Speed, SpeedSettings, SpeedsSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import cut, nearest_key
from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.floors import CACHED, STEPS, Floors, parsed_floors
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.media.values import MediaKind

TOLERANCES = {"psnr_db": 3.0, "ssim": 0.01}
"""Tolerance below a measured worst decile, by measure: other prompts and devices differ. 3 dB double the power."""


@dataclass(frozen=True)
class Wanted:
    """Speeds to draw, with their floors."""

    points: Mapping[Speed, Point]
    floors: Floors
    origins: Mapping[Speed, str]
    """Origin of a speed's floors, in words."""
    uncached: Sequence[Point] = ()
    """Uncached runs whose likeness is a floor."""


def check_names(floors: Sequence[str], names: Sequence[str] | None, speeds: SpeedsSettings) -> None:
    """Refuse what no model could have, before one is loaded.

    Args:
        floors: texts of `--floor`.
        names: speeds of `--speeds`; None: all.

    Raises:
        ConfigError: a floor cannot be read, or a speed does not exist or is above the ceiling.
    """
    refusals = []
    for kind in MediaKind:
        try:
            parsed_floors(floors, kind)
        except ConfigError as error:
            refusals.append(error)
    if len(refusals) == len(MediaKind):
        raise refusals[0]
    for name in names or ():
        if name not in CACHED:
            nearest = nearest_key(name, CACHED)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise ConfigError(f"--speeds: there is no cached speed {cut(name)!r}, only {', '.join(CACHED)}{hint}")
        if name not in offered(speeds):
            raise ConfigError(f"--speeds: {name} is above speeds.ceiling, {speeds.ceiling}, so no request has it")


def offered(speeds: SpeedsSettings) -> list[Speed]:
    """Return the cached speeds within the ceiling."""
    if speeds.ceiling is None:
        return list(CACHED)
    return [] if speeds.ceiling == "lossless" else list(CACHED[: CACHED.index(speeds.ceiling) + 1])


def wanted(
    floors: Sequence[str],
    names: Sequence[str] | None,
    speeds: SpeedsSettings,
    subject: Subject,
    *,
    usual_request: bool = True,
) -> Wanted:
    """Return the speeds of a loaded model with their floors.

    A speed's floors are those of the texts; without any, those of the configuration; without any, its measured worst
    deciles less :data:`TOLERANCES`.

    Args:
        usual_request: the outputs are those of a request that names nothing else, as the measured ones are.

    Raises:
        ConfigError: a speed cannot run or has no floor, or a floor belongs to no speed that is drawn.
    """
    points = _points(names, speeds, subject)
    of_all, of_one = parsed_floors(floors, subject.kind)
    if idle := next((speed for speed in of_one if speed not in points), None):
        raise ConfigError(f"--floor {idle}:...: {idle} is not drawn here, only {', '.join(points)}")
    found: dict[Speed, Mapping[str, float]] = {}
    origins: dict[Speed, str] = {}
    for speed, point in points.items():
        section: SpeedSettings = getattr(speeds, speed)
        figures = figures_of(section.measured, point) if usual_request else {}
        for values, origin in (
            (of_all | of_one.get(speed, {}), "--floor"),
            (speeds.floors_of(speed), "the configuration's floors"),
            (figures, f"the configuration's measured worst deciles, less {_tolerances()}"),
        ):
            if values and speed not in found:
                found[speed], origins[speed] = values, origin
    if bare := [speed for speed in points if speed not in found]:
        raise ConfigError(
            f"{', '.join(bare)}: no floor; give one, such as --floor {bare[0]}:{_example(subject.kind)}, or set "
            "speeds.floors in the configuration"
        )
    return Wanted(points, found, origins, _uncached(found, subject))


def figures_of(measured: MeasuredSpeed | None, point: Point) -> dict[str, float]:
    """Return the measured worst deciles of exactly this point less the tolerances; empty if there are none."""
    if measured is None or point.settings is None:
        return {}
    if (measured.settings_hash, measured.num_inference_steps) != (point.settings.digest(), point.steps):
        return {}
    deciles = {"psnr_db": measured.psnr_db_worst_decile, "ssim": measured.ssim_worst_decile}
    return {name: value - TOLERANCES[name] for name, value in deciles.items()}


def _points(names: Sequence[str] | None, speeds: SpeedsSettings, subject: Subject) -> dict[Speed, Point]:
    known = {speed: subject.configured[speed] for speed in offered(speeds) if speed in subject.configured}
    asked = [
        speed
        for speed in offered(speeds)
        if (names is None and _is_configured(speed, speeds)) or speed in (names or ())
    ]
    if unfit := next((speed for speed in asked if speed not in known), None):
        raise ConfigError(
            f"speeds.{unfit}: cannot run on this model; it has {', '.join(known) or 'no cached speed'}. Caches that "
            f"run on it: {', '.join(subject.cache_types) or 'none'}"
        )
    points = {speed: point for speed, point in known.items() if names is None or speed in names}
    if not points:
        raise ConfigError("this configuration offers no cached speed on this model, so there is nothing to verify")
    return points


def _is_configured(speed: Speed, speeds: SpeedsSettings) -> bool:
    section: SpeedSettings = getattr(speeds, speed)
    return section.cache is not None or bool(section.floors.given)


def _uncached(floors: Floors, subject: Subject) -> list[Point]:
    """Return the uncached runs whose likeness is a floor.

    Raises:
        ConfigError: the reference has too few steps.
    """
    points = []
    for share in {values[STEPS] for values in floors.values() if STEPS in values}:
        point = Point(max(subject.least_steps, min(subject.steps - 1, round(share * subject.steps))))
        if not 0 < point.steps < subject.steps:
            raise ConfigError(f"--floor steps={share:g}: the reference's {subject.steps} steps are too few for a share")
        points.append(point)
    return points


def _tolerances() -> str:
    return f"{TOLERANCES['psnr_db']:g} dB of PSNR and {TOLERANCES['ssim']:g} of SSIM"


def _example(kind: MediaKind) -> str:
    return "snr_db=30" if kind is MediaKind.AUDIO else "ssim=.95"
