"""Messages between the server and a decoder: the length of a JSON header, the header, and raw bytes it announces."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

LENGTH = struct.Struct(">I")
LONGEST_HEADER = 2**16
"""Maximum size of a header, bytes."""


class Ended(Exception):
    """The other side is gone, or it sent something that is not a message."""


def send(stream: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    """Write one message.

    Raises:
        Ended: the other side closed the pipe.
    """
    text = json.dumps(header).encode()
    try:
        stream.write(LENGTH.pack(len(text)) + text)
        stream.write(data)
        stream.flush()
    except (OSError, ValueError) as error:
        raise Ended from error


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """Read the header of the next message. :func:`receive_bytes` reads the bytes that follow.

    Raises:
        Ended: no header came, it exceeds `LONGEST_HEADER`, or it is not a JSON object.
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
    """Read exactly `count` bytes.

    Raises:
        Ended: fewer bytes came.
    """
    try:
        data = stream.read(count)
    except (OSError, ValueError) as error:
        raise Ended from error
    if len(data) != count:
        raise Ended
    return data
