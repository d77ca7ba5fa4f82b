"""Warnings about an output that came out otherwise than its request says."""

from __future__ import annotations

from collections.abc import Iterator

from cache_dit_serving.pipeline.protocol import Cut, SampleRecord
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.schemas.answers import RequestWarning

MOST_QUOTED = 300
"""Characters of a prompt that a warning repeats."""


def output_warnings(call: ImageCall, record: SampleRecord) -> Iterator[RequestWarning]:
    """Return warnings of another size or number of frames, which some models choose by rules of their own, and of words
    that were cut."""
    made = {"num_frames": record.num_frames}
    if record.size is not None:
        made |= {"width": record.size[0], "height": record.size[1]}
    asked = call.arguments | ({"num_frames": call.video.num_frames} if call.video else {})
    for name, value in made.items():
        if value is not None and asked.get(name, value) != value:
            message = f"the model made a {name} of {value}, not the {asked[name]} it was asked for"
            yield RequestWarning(param=name, code="adjusted", message=message)
    for cut in record.cuts:
        yield RequestWarning(param=cut.param, code="truncated", message=_described(cut))


def _described(cut: Cut) -> str:
    lost = cut.lost if len(cut.lost) <= MOST_QUOTED else cut.lost[:MOST_QUOTED] + "..."
    elsewhere = f" ({' and '.join(cut.read_by)} read all of it)" if cut.read_by else ""
    count = len(cut.lost.split())
    words = "1 word" if count == 1 else f"{count:,} words"
    return f"{cut.component} keeps {cut.tokens} tokens and cut off {words}{elsewhere}: {lost!r}"
