"""Files sent as text: a data URI or plain base64."""

from __future__ import annotations

import binascii

import pybase64

from cache_dit_serving.errors import InvalidRequest

LONGEST_HEAD = 200
"""Maximum length of a data URI's head, the part before the comma, characters."""
SPACES = b" \t\r\n"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
"""Translation of the URL-safe alphabet (RFC 4648, section 5) to the standard one."""


def bytes_of(text: bytes, param: str, *, kind: str, formats: str, media_type: str) -> bytes:
    """Decode a data URI or plain base64. Padding and line breaks are optional; both alphabets are read.

    The media type of a data URI is ignored, because some clients send the same one for every file. Digits as an encoder
    writes them are decoded where they lie: the text of a file of 15 MB has 20 MB.

    Args:
        kind: noun for the expected file, used in errors.
        formats: accepted formats, used in errors.
        media_type: media type of one accepted format, used in errors.

    Raises:
        InvalidRequest: the text is not base64; the message names `param` and the remedy.
    """
    text = text.lstrip()
    digits = memoryview(text)
    if text[:5].lower() == b"data:":
        head, comma, _ = text[:LONGEST_HEAD].partition(b",")
        if not comma:
            raise InvalidRequest(f"{param} is not a data URI of a {kind}: data:{media_type};base64,...", param=param)
        if b"base64" not in (part.strip().lower() for part in head.split(b";")[1:]):
            raise InvalidRequest(
                f"{param} is a data URI without base64; send data:{media_type};base64,...", param=param
            )
        digits = digits[len(head) + 1 :]
    try:
        return _decoded(digits)
    except binascii.Error:
        raise InvalidRequest(
            f"{param} is not base64 of a {kind}; send a data URI, or base64 of a {formats} file", param=param
        ) from None


def _decoded(digits: memoryview) -> bytes:
    """Decode base64.

    Raises:
        binascii.Error: it is not base64.
    """
    try:
        return pybase64.b64decode(digits, validate=True)
    except binascii.Error:  # the translation takes ten times as long as the decoding
        bare = bytes(digits).translate(_TO_STANDARD, delete=SPACES).rstrip(b"=")
        return pybase64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
