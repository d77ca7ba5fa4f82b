"""Examples on the page of `/docs`: a request for every route with a body, which the embedded model draws."""

from __future__ import annotations

from cache_dit_serving.api.operation import Example

BLUE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAGAAAABgAQMAAADYVuV7AAAAA1BMVEVaoOYhP20YAAAAEklEQVR42mNgGAWjYBSMguEJAATgAAH4jcwqAAAAAElFTkSu"
    "QmCC"
)
"""96 x 96 pixels of one colour."""
IMAGE: Example = {"prompt": "a red apple on a blue background", "seed": 7, "speed": "balanced"}
COMPARISON: Example = {"prompt": "a robot on a yellow background", "seed": 1, "speed": "fast"}
EDIT: Example = {"prompt": "a strawberry on a blue background", "seed": 7, "image_urls": [BLUE]}
PRIORITY: Example = {"priority": 0}
WEIGHTS: Example = {"folder": "step-1000"}
NOTHING: Example = {}
