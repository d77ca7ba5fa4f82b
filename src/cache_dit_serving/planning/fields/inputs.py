"""Inputs of tasks that are not served yet: their neutral values ask for nothing, all others are refused."""

from __future__ import annotations

from cache_dit_serving.planning.fields.field import PipelineField
from cache_dit_serving.planning.model import PlannedModel


class ImageUrls(PipelineField):
    name = "image_urls"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return False
