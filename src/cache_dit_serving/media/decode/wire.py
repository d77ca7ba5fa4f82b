"""Messages of the server and a decoder: the length of a JSON header, the header, and raw bytes that it announces."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

LENGTH = struct.Struct(">I")
LONGEST_HEADER = 2**16
"""Bytes."""


class Ended(Exception):
    """The other side is gone, or what it sends is no message."""


def send(stream: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    """
    Raises:
        Ended: nobody reads it.
    """
    text = json.dumps(header).encode()
    try:
        stream.write(LENGTH.pack(len(text)) + text)
        stream.write(data)
        stream.flush()
    except (OSError, ValueError) as error:
        raise Ended from error


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """The header of the next message; its bytes are for :func:`receive_bytes`.

    Raises:
        Ended: there is none, or it is no JSON object.
    """
    (length,) = LENGTH.unpack(receive_bytes(stream, LENGTH.size))
    if length > LONGEST_HEADER:
        raise Ended
    try:
        header = json.loads(receive_bytes(stream, length))
    except (ValueError, RecursionError) as error:
        raise Ended from error
    if not isinstance(header, dict):
        raise Ended
    return header


def receive_bytes(stream: IO[bytes], count: int) -> bytes:
    """
    Raises:
        Ended: there are fewer.
    """
    try:
        data = stream.read(count)
    except (OSError, ValueError) as error:
        raise Ended from error
    if len(data) != count:
        raise Ended
    return data
