"""Images and videos in bodies, taken out before anything copies the body.

BentoML parses a body on the event loop. The body that reaches it holds the place of each file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_dit_serving.engine.inputs import IMAGES, SINGLE, UPLOAD, upload_name
from cache_dit_serving.errors import InvalidRequest


def take_out_files(tree: dict[str, Any], files: Sequence[bytes] = ()) -> list[str | bytes]:
    """Replace each image that a body holds as text by its name; return all, in the order of their names.

    Args:
        files: images that came beside the body, which it names already.

    Raises:
        InvalidRequest: a field holds another such name.
    """
    uploads: list[str | bytes] = list(files)
    named_already = {upload_name(index) for index in range(len(files))}

    def named(text: str, param: str) -> str:
        if text in named_already:
            return text
        if text.startswith(UPLOAD):
            raise InvalidRequest(f"{param} is no picture; send a data URI or base64", param=param)
        if "://" in text[:16]:
            return text
        uploads.append(text)
        return upload_name(len(uploads) - 1)

    images = tree.get(IMAGES)
    if isinstance(images, list):
        tree[IMAGES] = [
            named(each, f"{IMAGES}.{index}") if isinstance(each, str) else each for index, each in enumerate(images)
        ]
    for field in SINGLE:
        if isinstance(tree.get(field), str):
            tree[field] = named(tree[field], field)
    return uploads
