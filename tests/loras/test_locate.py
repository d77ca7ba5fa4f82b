"""Places of LoRA files on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.loras.locate import locate


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "red.pt", "red.ckpt"])
def test_a_folder_with_a_pickle_alone_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(LoadError, match=rf"^LoRA red \({name}\): .* it is a pickle, .*; convert it with torch\.load"):
        locate(LoraSettings(name="red", path=str(tmp_path)))
