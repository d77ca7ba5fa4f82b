"""Files that stand in a request as text: a data URI, or base64 alone, as clients write them."""

from __future__ import annotations

import base64
import binascii

from cache_dit_serving.errors import InvalidRequest

LONGEST_HEAD = 200
"""Characters of a data URI before its comma, most."""
SPACES = b" \t\r\n"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
"""From the alphabet for URLs (RFC 4648, section 5)."""


def bytes_of(text: str, param: str, *, kind: str, formats: str, media_type: str) -> bytes:
    """The file behind a data URI or base64, with or without padding and line breaks, of either alphabet.

    The media type of a data URI is passed over: clients send one for all files. The file's own bytes tell its format.

    Args:
        kind: noun of what is wanted, for errors.
        formats: those that are read, for errors.
        media_type: an example of theirs, for errors.

    Raises:
        InvalidRequest: naming `param` and the remedy.
    """
    text = text.lstrip()
    if text[:5].lower() == "data:":
        head, comma, text = _split(text)
        if not comma:
            raise InvalidRequest(f"{param} is not a data URI of a {kind}: data:{media_type};base64,...", param=param)
        if "base64" not in (part.strip().lower() for part in head.split(";")[1:]):
            raise InvalidRequest(
                f"{param} is a data URI without base64; send data:{media_type};base64,...", param=param
            )
    try:
        digits = text.encode("ascii").translate(_TO_STANDARD, delete=SPACES).rstrip(b"=")
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidRequest(
            f"{param} is not base64 of a {kind}; send a data URI, or base64 of a {formats} file", param=param
        ) from None


def _split(text: str) -> tuple[str, str, str]:
    head, comma, _ = text[:LONGEST_HEAD].partition(",")
    return head, comma, text[len(head) + 1 :]
