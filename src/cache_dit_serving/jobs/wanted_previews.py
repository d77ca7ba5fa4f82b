"""Previews that followers of a generation want, and the steps after which they are due."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable

from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.jobs import JobPreview


class WantedPreviews:
    """The previews that one follower wants of a generation.

    The pipeline's thread asks when one is due, the thread of previews adds them, the event loop takes them.
    """

    def __init__(self, count: int, steps: int, images: int, step: int = 0) -> None:
        """
        Args:
            count: how many, spread over all steps; fewer where there are not as many steps.
            steps: of each image.
            step: at which the follower came, over all images.
        """
        self._count = count
        self._due = deque(spread(count, steps, images))
        self._room = len(self._due)
        self._came = step
        self._made: deque[JobPreview] = deque()
        self._failed = 0

    def is_due(self, step: int) -> bool:
        """Return whether one is due at a step, over all images; it is not due again.

        Those whose steps were over when the follower came count as one.
        """
        due = False
        while self._due and self._due[0] <= step:
            self._due.popleft()
            due = True
        return due

    def add(self, preview: JobPreview | None) -> None:
        """Give the follower one that was due; None: it could not be made."""
        if preview is None:
            self._failed += 1
        else:
            self._made.append(preview)

    def take(self) -> list[JobPreview]:
        """Return the previews that the follower has not had yet, in the order of their steps."""
        return [self._made.popleft() for _ in range(len(self._made))]

    def missing(self, param: str) -> list[RequestWarning]:
        """Return a warning if there were fewer than the follower wanted; called after the last step.

        Args:
            param: by which the follower asked for them.
        """
        failed = self._failed + sum(step > self._came for step in self._due)
        if failed:
            message = f"{failed} of {self._count} previews could not be made; the server's log says why"
        elif self._room < self._count:
            message = f"{self._room} of {self._count} previews were made: one after each step but an image's last"
        else:
            return []
        return [RequestWarning(param=param, code="adjusted", message=message)]


class PreviewDemand:
    """The previews that the followers of one generation want, and the latest that was made. For any thread."""

    def __init__(self) -> None:
        self._wanted: list[WantedPreviews] = []
        self._latest: JobPreview | None = None
        self._followed = -math.inf

    @property
    def latest(self) -> JobPreview | None:
        """The latest preview."""
        return self._latest

    def add(self, wanted: WantedPreviews, step: int) -> None:
        """Add the previews of one more follower, who gets the latest at once where one is due.

        Args:
            step: at which the follower came, over all images.
        """
        if self._latest is not None and wanted.is_due(step):
            wanted.add(self._latest)
        self._wanted.append(wanted)

    def drop(self, wanted: WantedPreviews) -> None:
        """Make no more previews for one follower."""
        self._wanted.remove(wanted)

    def follow(self) -> None:
        """Take note of a look by a follower who does not say how many previews it wants."""
        self._followed = time.monotonic()

    def followed_within(self, seconds: float) -> bool:
        """Return whether the latest such look is no longer ago."""
        return time.monotonic() - self._followed <= seconds

    def due(self, step: int) -> list[WantedPreviews]:
        """Return the followers for whom a preview is due at a step, over all images; it is not due again."""
        return [each for each in tuple(self._wanted) if each.is_due(step)]

    def show(self, preview: JobPreview, followers: Iterable[WantedPreviews]) -> None:
        """Take the latest preview, and give it to the followers for whom it was made."""
        self._latest = preview
        for each in followers:
            each.add(preview)


def spread(count: int, steps: int, images: int) -> list[int]:
    """The steps, counted over all images, at which so many previews are due.

    There is none after an image's last step, which the image itself follows.
    """
    offered = [index * steps + step for index in range(images) for step in range(1, steps)]
    count = min(count, len(offered))
    return [offered[-(-(len(offered) + 1) * each // (count + 1)) - 1] for each in range(1, count + 1)]
