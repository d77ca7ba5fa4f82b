"""Files as base64: what is read, and that nothing else is."""

from __future__ import annotations

import base64
import binascii
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.base64_text import SPACES, bytes_of
from tests.support.properties import UNTIMED

ODD = st.text("ABab019+/-_= \t\r\n\0!~é", max_size=14)


def decoded(text: str) -> bytes | None:
    """Return the bytes of a text; None if it is refused."""
    try:
        return bytes_of(text.encode(), "image", kind="picture", formats="PNG", media_type="image/png")
    except InvalidRequest:
        return None


def decoded_by_the_standard_library(text: str) -> bytes | None:
    """Return as :func:`decoded`, by the definition: spaces left out, either alphabet, any padding."""
    standard = text.translate({ord("-"): "+", ord("_"): "/"} | dict.fromkeys(SPACES)).rstrip("=")
    try:
        return base64.b64decode(standard.encode("ascii") + b"=" * (-len(standard) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None


@UNTIMED
@given(ODD)
def test_a_text_is_read_or_refused_as_the_standard_library_does(text: str) -> None:
    assert decoded(text) == decoded_by_the_standard_library(text)


@UNTIMED
@given(st.binary(max_size=200), st.sampled_from(["", "\n", " \r\n"]), st.booleans(), st.booleans())
def test_bytes_come_back(content: bytes, line_break: str, urlsafe: bool, padded: bool) -> None:
    digits = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(content).decode()
    lines = [digits[place : place + 76] for place in range(0, len(digits), 76)]
    text = line_break.join([*lines, ""])
    assert decoded(text if padded else text.replace("=", "")) == content


@pytest.mark.parametrize("file_bytes", [3 * 2**20, 3 * 2**20 + 1])
def test_a_large_file_is_decoded_without_copies_of_its_text(file_bytes: int) -> None:
    text = b"data:image/png;base64," + base64.b64encode(bytes(file_bytes))
    tracemalloc.start()
    try:
        content = bytes_of(text, "image", kind="picture", formats="PNG", media_type="image/png")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert content == bytes(file_bytes)
    assert peak_bytes < 1.1 * file_bytes


@pytest.mark.parametrize(
    "text", ["A", "AAAAA", "AA=A", "AA!=", "A\0AA", "AAéA", "data:image/png;base64,A", "data:x,AAAA"]
)
def test_junk_is_refused(text: str) -> None:
    assert decoded(text) is None
