"""Table of the measures: a row each, which the search, reports, pages and docs/measures.md read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cache_dit_serving.media.values import MediaKind

IMAGE, VIDEO, AUDIO = MediaKind.IMAGE, MediaKind.VIDEO, MediaKind.AUDIO
GREATEST_DB = 100.0
"""Decibels that stand for an infinite ratio in means, intervals and JSON: equal outputs have one."""


@dataclass(frozen=True)
class Measure:
    """Facts about one measure."""

    name: str
    """Name in answers, files and reports."""
    title: str
    kinds: tuple[MediaKind, ...]
    """Kinds of outputs that have it."""
    unit: str
    """Unit of its values; empty: none."""
    low: float
    """Lowest possible value."""
    high: float
    """Highest possible value."""
    higher_is_better: bool
    equal: float | None
    """Value for equal outputs; None: it compares no two outputs."""
    definition: str
    """One sentence."""
    source: str
    """Paper or package that defines it."""
    needs: str = ""
    """Part that the operator brings; empty: none, and every distance of its kinds has it."""

    def better(self, value: float, other: float) -> bool:
        """Return True if a value is better than another one."""
        return value > other if self.higher_is_better else value < other

    @property
    def label(self) -> str:
        """Title with the unit, for the head of a column or an axis."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def is_ratio(self) -> bool:
        """True if equal outputs have an infinite value, as a ratio to their difference has."""
        return self.equal is not None and math.isinf(self.equal)

    def finite(self, value: float) -> float:
        """Return a value that means and JSON can hold: a ratio in decibels is cut to `GREATEST_DB` on both sides."""
        return max(-GREATEST_DB, min(GREATEST_DB, value)) if self.is_ratio else value

    @property
    def least_loss(self) -> float:
        """Loss of equal outputs.

        Raises:
            ValueError: the measure compares no two outputs.
        """
        if self.equal is None:
            raise ValueError(f"{self.name} compares no two outputs")
        return self.loss(self.finite(self.equal))

    def loss(self, value: float) -> float:
        """Return the value as a loss, which is lower for a closer output."""
        return -value if self.higher_is_better else value

    def value(self, loss: float) -> float:
        """Return the value of a loss."""
        return -loss if self.higher_is_better else loss


ROWS = (
    Measure(
        "psnr_db",
        "PSNR",
        (IMAGE, VIDEO),
        "dB",
        0,
        math.inf,
        True,
        math.inf,
        "Peak signal-to-noise ratio: power of full level 1 over the mean squared difference of all values.",
        "ITU-T J.340 (2010); as scikit-image's `peak_signal_noise_ratio` with a data range of 1",
    ),
    Measure(
        "ssim",
        "SSIM",
        (IMAGE, VIDEO),
        "",
        -1,
        1,
        True,
        1,
        "Structural similarity in Gaussian windows of 11 x 11 px with sigma 1.5, mean over the windows within the "
        "picture and over its channels; pictures with a side below 11 px have none.",
        "Wang et al. 2004, [doi:10.1109/TIP.2003.819861](https://doi.org/10.1109/TIP.2003.819861)",
    ),
    Measure(
        "flip",
        "FLIP",
        (IMAGE, VIDEO),
        "",
        0,
        1,
        False,
        0,
        "Mean difference that an observer sees between two pictures shown in turn on a 4K monitor 0.7 m wide, from "
        "0.7 m (67 pixels per degree).",
        "Andersson et al. 2020, [doi:10.1145/3406183](https://doi.org/10.1145/3406183), by flip-evaluator 1.7",
    ),
    Measure(
        "max_difference",
        "greatest difference",
        (IMAGE, VIDEO, AUDIO),
        "",
        0,
        2,
        False,
        0,
        "Greatest difference of a value: of a pixel's channel, at most 1, or of a sample, at most 2.",
        "definition",
    ),
    Measure(
        "mean_difference",
        "mean difference",
        (IMAGE, VIDEO, AUDIO),
        "",
        0,
        2,
        False,
        0,
        "Mean of the absolute differences of all values: channels of pixels, or samples.",
        "definition",
    ),
    Measure(
        "flicker",
        "flicker",
        (VIDEO,),
        "",
        0,
        2,
        False,
        0,
        "Root mean square, in a frame, of the difference between a value's change since the frame before and the same "
        "change in the reference, mean over the pairs of frames: an error that stays still in time does not count.",
        "dtSSD of Erofeev et al. 2015, [doi:10.5244/C.29.99](https://doi.org/10.5244/C.29.99), per value",
    ),
    Measure(
        "snr_db",
        "SNR",
        (AUDIO,),
        "dB",
        -math.inf,
        math.inf,
        True,
        math.inf,
        "Signal-to-noise ratio: power of the reference over power of the difference.",
        "definition",
    ),
    Measure(
        "spectral_db",
        "log-spectral distance",
        (AUDIO,),
        "dB",
        0,
        math.inf,
        False,
        0,
        "Root mean square over the frequencies of the difference between two spectra in dB, at least -100 dB of full "
        "level each, mean over time and channels and over Hann windows of 512, 1024 and 2048 samples a quarter apart.",
        "Gray and Markel 1976, [doi:10.1109/TASSP.1976.1162849](https://doi.org/10.1109/TASSP.1976.1162849); "
        "several windows as Yamamoto et al. 2020, "
        "[doi:10.1109/ICASSP40776.2020.9053795](https://doi.org/10.1109/ICASSP40776.2020.9053795)",
    ),
    Measure(
        "lpips",
        "LPIPS",
        (IMAGE,),
        "",
        0,
        math.inf,
        False,
        0,
        "Weighted mean of the squared differences between the normalised activations of a network in both pictures.",
        "Zhang et al. 2018, [doi:10.1109/CVPR.2018.00068](https://doi.org/10.1109/CVPR.2018.00068), "
        "by the package lpips",
        "lpips, torchvision and its weights",
    ),
    Measure(
        "reward",
        "reward",
        (IMAGE,),
        "",
        -math.inf,
        math.inf,
        True,
        None,
        "Likeness of a picture to its prompt by a CLIP that was trained on people's choices, such as PickScore: cosine "
        "of both embeddings, by the model's scale; without a reference.",
        "Kirstain et al. 2023, [arXiv:2305.01569](https://arxiv.org/abs/2305.01569)",
        "a CLIP model",
    ),
)
MEASURES = {row.name: row for row in ROWS}
"""Measures by name, in the order of reports."""


def markdown() -> str:
    """Return the table of docs/measures.md."""
    lines = ["| measure | name | of | unit | range | better | definition | source |", "|" + "---|" * 8]
    for row in ROWS:
        cells = (
            row.title,
            f"`{row.name}`",
            ", ".join(row.kinds),
            row.unit or "-",
            f"{_bound(row.low)} to {_bound(row.high)}",
            "higher" if row.higher_is_better else "lower",
            row.definition,
            row.source,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bound(value: float) -> str:
    return f"{value:g}".replace("inf", "∞")
