"""The image's layers packed by gzip, as a registry keeps and a pull transfers them."""

from __future__ import annotations

import json
import shutil

from tools.image.storage import Storage


def packed_sizes(storage: Storage, image: str) -> list[int]:
    """Return the bytes of each packed layer of an image, the oldest first; empty layers have a few.

    With CUDA this takes minutes, and the folder of the storage needs room for the packed image.
    """
    folder = storage.folder / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        storage.run("podman", "push", "--quiet", "--compress", image, f"dir:{folder}", timeout=1200)
        layers = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["layers"]
        return [int(layer["size"]) for layer in layers]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
