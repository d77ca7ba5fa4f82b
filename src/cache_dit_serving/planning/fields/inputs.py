"""Inputs and outputs of tasks that are not served yet: their neutral values ask for nothing, all others are refused."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.planning.fields.field import PipelineField
from cache_dit_serving.planning.model import PlannedModel


class NotServed(PipelineField):
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return False


class ImageUrls(NotServed):
    name = "image_urls"


class NumFrames(NotServed):
    name = "num_frames"

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, 1)


class Fps(NotServed):
    name = "fps"

    def asks_nothing(self, value: Any) -> bool:
        """Any value: an image has no frame rate, whatever it is."""
        return True
