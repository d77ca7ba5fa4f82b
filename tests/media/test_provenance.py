"""The origin that files state, as independent readers find it, and pixels and samples that stay as they are."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.images import webp_of
from cache_dit_serving.media.kinds import KINDS, OutputSpec
from cache_dit_serving.media.provenance import DigitalSource
from cache_dit_serving.media.structure.boxes import boxes
from cache_dit_serving.media.values import MediaKind
from tests.support.random_outputs import two_outputs

PARAMETERS = {"prompt": "eine Katze, läuft", "seed": 7}
ADDRESS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PROPERTY = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
FORMATS = [(kind, name) for kind in KINDS for name in KINDS[kind].formats]


def stated_in(packet: bytes | str) -> str | None:
    """The digital source type in an XMP packet."""
    described = ElementTree.fromstring(packet).find(f"{RDF}RDF/{RDF}Description")
    return None if described is None else described.get(PROPERTY)


def by_pillow(content: bytes) -> str | None:
    return stated_in(Image.open(io.BytesIO(content)).info["xmp"])


def by_ffmpeg(content: bytes) -> str | None:
    with av.open(io.BytesIO(content), options={"export_xmp": "1"}) as container:
        return stated_in(container.metadata["xmp"])


def by_vorbis_comment(content: bytes) -> str | None:
    with av.open(io.BytesIO(content), "r") as container:
        return container.metadata["DIGITALSOURCETYPE"]


def by_gif_blocks(content: bytes) -> str | None:
    """Of the application extension, read as https://www.w3.org/Graphics/GIF/spec-gif89a.txt has it: block by block."""
    begin = content.index(b"\x21\xff\x0bXMP DataXMP") + 14
    place = begin
    while content[place]:
        place += content[place] + 1
    assert content[place + 1 : place + 2] in b"\x21\x2c", "another block follows"
    return stated_in(content[begin : place - 257])


def by_riff_chunks(content: bytes) -> str | None:
    assert int.from_bytes(content[4:8], "little") + 8 == len(content)
    place = 12
    while content[place : place + 4] != b"_PMX":
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    length = int.from_bytes(content[place + 4 : place + 8], "little")
    return stated_in(content[place + 8 : place + 8 + length])


READERS = {
    "png": by_pillow,
    "jpeg": by_pillow,
    "webp": by_pillow,
    "mp4": by_ffmpeg,
    "gif": by_gif_blocks,
    "wav": by_riff_chunks,
    "flac": by_vorbis_comment,
}


def shown(kind: MediaKind, name: str, content: bytes) -> np.ndarray[Any, Any]:
    """All that a player shows or plays of a file."""
    if name in ("mp4", "wav", "flac"):
        with av.open(io.BytesIO(content), "r") as container:
            return np.concatenate([frame.to_ndarray() for frame in container.decode(0)], axis=-1)
    opened = Image.open(io.BytesIO(content))
    return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)])


@pytest.mark.parametrize("source", DigitalSource)
@pytest.mark.parametrize(("kind", "name"), FORMATS)
def test_a_file_states_its_origin_and_shows_the_same(kind: MediaKind, name: str, source: DigitalSource) -> None:
    output = two_outputs(kind)[0]
    plain, _ = encode(output, OutputSpec(name), PARAMETERS)
    content, _ = encode(output, OutputSpec(name, source=source), PARAMETERS)
    assert READERS[name](content) == ADDRESS + source
    assert np.array_equal(shown(kind, name, content), shown(kind, name, plain))
    assert b"DigitalSourceType" not in plain
    assert b"DIGITALSOURCETYPE" not in plain
    assert len(content) - len(plain) < 1000


def test_the_terms_are_those_of_iptc() -> None:
    assert set(DigitalSource) == {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "algorithmicMedia",
    }


def test_a_png_keeps_the_request_beside_it() -> None:
    spec = OutputSpec("png", source=DigitalSource.GENERATED)
    picture: Any = Image.open(io.BytesIO(encode(two_outputs(MediaKind.IMAGE)[0], spec, PARAMETERS)[0]))
    assert list(picture.text) == ["parameters", "XML:com.adobe.xmp"]


@pytest.mark.parametrize(("name", "tag"), [("webp", 0x010E), ("gif", None)])
def test_an_animation_keeps_the_request_beside_it(name: str, tag: int | None) -> None:
    video = two_outputs(MediaKind.VIDEO)[0]
    for source in (None, DigitalSource.GENERATED):
        picture: Any = Image.open(io.BytesIO(encode(video, OutputSpec(name, source=source), PARAMETERS)[0]))
        assert "Katze" in str(picture.getexif()[tag] if tag else picture.info["comment"])


def test_an_mp4_keeps_the_request_and_its_index_in_front() -> None:
    spec = OutputSpec("mp4", source=DigitalSource.GENERATED)
    content, _ = encode(two_outputs(MediaKind.VIDEO)[0], spec, PARAMETERS)
    names = [box.name for box in boxes(content, 0, len(content))]
    assert names.index(b"moov") < names.index(b"mdat") < names.index(b"uuid") == len(names) - 1
    with av.open(io.BytesIO(content), "r") as container:
        assert "Katze" in container.metadata["comment"].encode().decode("unicode_escape")


def test_a_preview_states_its_origin() -> None:
    image = Image.new("RGB", (32, 32), "red")
    assert by_pillow(webp_of(image, DigitalSource.EDITED)) == ADDRESS + DigitalSource.EDITED
    assert "xmp" not in Image.open(io.BytesIO(webp_of(image))).info
