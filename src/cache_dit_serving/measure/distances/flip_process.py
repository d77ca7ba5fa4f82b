"""Child process that computes FLIP: `python -I flip_process.py`. It imports nothing of this package.

It reads a line of JSON, the shape of two pictures, then the reference and the picture as float32; it answers with the
mean as a line of text. It ends when its input does.
"""

from __future__ import annotations

import json
import math
import sys

import numpy as np


def main() -> None:
    """Answer until the input ends."""
    import flip_evaluator

    while line := sys.stdin.buffer.readline():
        shape = json.loads(line)
        size = 4 * math.prod(shape)
        # flip_evaluator 1.7 takes no array that is read-only, as one of bytes is.
        contents = (bytearray(sys.stdin.buffer.read(size)) for _ in range(2))
        reference, ours = (np.frombuffer(content, np.float32).reshape(shape) for content in contents)
        _, mean, _ = flip_evaluator.evaluate(reference, ours, "LDR", applyMagma=False)
        print(repr(float(mean)), flush=True)


if __name__ == "__main__":
    main()
