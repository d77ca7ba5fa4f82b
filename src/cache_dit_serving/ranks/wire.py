"""Messages between the server's process and its ranks: JSON, with arrays and images as raw bytes.

A message is a length (8 bytes, big-endian), JSON of this length, and attachments, whose lengths are in the JSON.
Nothing is pickled. A connection begins with a :data:`GREETING` of a rank or of another machine. The server answers with
a :data:`WELCOME`. Then :data:`DOWN` messages go to rank 0, and :data:`UP` messages come from every rank.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError, field_serializer

from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, MediaKind, VideoOutput
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.planning.call import ImageCall

JOIN_TOKEN = "CACHEDIT_JOIN_TOKEN"
"""Environment variable of the secret that another machine needs to join."""
ANOTHER = "another rank failed"
"""Message of a rank that ends because another one failed."""
LENGTH = struct.Struct(">Q")
MOST_JSON_BYTES = 64 * 2**20
MOST_GREETING_BYTES = 2**12
GREETING_S = 10.0
"""Maximum time for a new connection to send its greeting, seconds."""
UNREACHABLE_S = 30
"""Time without a response from another machine, seconds, after which its connection counts as closed."""
IMAGE = "picture"
"""Key of the mapping that replaces an image among a call's arguments. Its value is the attachment's index."""


CALL = TypeAdapter(ImageCall)


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageShape(Message):
    """Mode and (width, height) of an image whose pixels are an attachment, row by row."""

    mode: Literal["L", "RGB", "RGBA"]
    size: tuple[int, int]


class Envelope(Message):
    """JSON part of a message, with the length of each attachment in bytes."""

    message: Any
    lengths: list[NonNegativeInt]


class Hello(Message):
    """Greeting of a rank."""

    kind: Literal["hello"] = "hello"
    rank: int
    pid: int
    token: str


class Join(Message):
    """Greeting of another machine that offers to run ranks."""

    kind: Literal["join"] = "join"
    token: str
    gpus: int
    versions: dict[str, str]


class Brief(Message):
    """Welcome of a rank."""

    kind: Literal["brief"] = "brief"
    settings: dict[str, Any]
    on_gpus: bool
    store: str | None
    """File of the ranks' store on one machine; None on several, where the ranks use the agents' store."""


class Place(Message):
    """Welcome of another machine, sent once enough have joined: the ranks it starts and their rendezvous."""

    kind: Literal["place"] = "place"
    node: int
    nodes: int
    ranks: int
    """Number of ranks per machine."""
    endpoint: str
    """host:port of the rendezvous; empty on one machine."""
    group: str
    """Name of the group in torch's stores. Not a secret, because everyone who reaches a store can read it."""
    token: str
    """Secret of the ranks' greeting."""


class Sample(Message):
    kind: Literal["sample"] = "sample"
    call: ImageCall
    """The images among its arguments stand there as `{"picture": n}`."""
    images: list[ImageShape]

    @field_serializer("call")
    def _without_defaults(self, call: ImageCall) -> dict[str, Any]:
        # Cache settings refuse a field that has no effect, though it has its default.
        given: dict[str, Any] = CALL.dump_python(call, mode="json", exclude_defaults=True)
        return given


class Cancel(Message):
    kind: Literal["cancel"] = "cancel"


class Flush(Message):
    kind: Literal["flush"] = "flush"


class Lora(Message):
    kind: Literal["lora"] = "lora"
    name: str
    loaded: bool


class Sleep(Message):
    """Command to move the weights to host memory."""

    kind: Literal["sleep"] = "sleep"


class Wake(Message):
    """Command to put the weights back on the device."""

    kind: Literal["wake"] = "wake"


class Exit(Message):
    kind: Literal["exit"] = "exit"


class Stage(Message):
    kind: Literal["stage"] = "stage"
    what: str


class Ready(Message):
    kind: Literal["ready"] = "ready"
    facts: dict[str, Any]
    variants: list[dict[str, Any]]
    """Traits and cache support of the pipeline and of its siblings."""
    loras: list[dict[str, Any]]


class Progress(Message):
    kind: Literal["progress"] = "progress"
    done: int
    cached: int


class WireArray(Message):
    dtype: Literal["uint8", "float32", "float64"]
    shape: tuple[int, ...]


class Sampled(Message):
    kind: Literal["drawn"] = "drawn"
    record: dict[str, Any]
    array: WireArray
    finite: bool = True
    fps: float | None = None
    audio: WireArray | None = None
    rate: int | None = None


class Done(Message):
    """Success of a command other than `Sample`."""

    kind: Literal["done"] = "done"
    freed: tuple[int, int] = (0, 0)
    slept: int = 0
    """Bytes of rank 0's device that its sleep freed."""


class Failed(Message):
    """Failure of a command. The ranks continue unless it is `fatal`."""

    kind: Literal["failed"] = "failed"
    what: Literal["stopped", "invalid", "out_of_memory", "error"]
    message: str
    param: str | None = None
    fatal: bool = False


class Beat(Message):
    """Sign of life, sent every second by every rank."""

    kind: Literal["beat"] = "beat"
    memory: dict[str, int]
    loras: dict[str, dict[str, Any]]


Down = Sample | Cancel | Flush | Lora | Sleep | Wake | Exit
Up = Stage | Ready | Progress | Sampled | Done | Failed | Beat
Greeting = Hello | Join
Welcome = Brief | Place | Failed
GREETING: TypeAdapter[Greeting] = TypeAdapter(Annotated[Greeting, Field(discriminator="kind")])
WELCOME: TypeAdapter[Welcome] = TypeAdapter(Annotated[Welcome, Field(discriminator="kind")])
DOWN: TypeAdapter[Down] = TypeAdapter(Annotated[Down, Field(discriminator="kind")])
UP: TypeAdapter[Up] = TypeAdapter(Annotated[Up, Field(discriminator="kind")])
RECORD = TypeAdapter(SampleRecord)


class Closed(Exception):
    """The connection is closed, or the other side sent something invalid."""


class Link:
    """One connection. Several threads may send; one may receive."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.local = connection.family == socket.AF_UNIX
        """True if the other side is on this machine."""
        self.own_address: str | None = None if self.local else connection.getsockname()[0]
        """IP address of this side on a connection to another machine; None on a local one."""
        self._writing = threading.Lock()

    def send(self, message: Message, attachments: list[bytes] | None = None) -> None:
        """Send one message with its attachments.

        Raises:
            Closed: the other side is gone.
        """
        blobs = attachments or []
        text = json.dumps({"message": message.model_dump(mode="json"), "lengths": list(map(len, blobs))}).encode()
        try:
            with self._writing:
                self._socket.sendall(LENGTH.pack(len(text)) + text)
                for blob in blobs:
                    self._socket.sendall(blob)
        except OSError as error:
            raise Closed from error

    def receive(self) -> tuple[Any, list[bytes]]:
        """Return the next message, not validated yet, and its attachments.

        Raises:
            Closed: the connection ended, or the message is malformed or too long.
        """
        envelope = self._envelope(MOST_JSON_BYTES)
        return envelope.message, [self._read(size) for size in envelope.lengths]

    def greeting(self) -> Greeting:
        """Return the first message of a new connection, at most `MOST_GREETING_BYTES` long. Its sender is not trusted.

        Raises:
            Closed: no valid greeting came within `GREETING_S`.
        """
        # A timer for the whole greeting, because a socket's timeout restarts with each byte.
        late = threading.Timer(GREETING_S, self.close)
        late.daemon = True
        late.start()
        try:
            return GREETING.validate_python(self._envelope(MOST_GREETING_BYTES).message)
        except ValidationError as error:
            raise Closed from error
        finally:
            late.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection at once, even while another thread waits for a message."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _envelope(self, most_bytes: int) -> Envelope:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        if length > most_bytes:
            raise Closed
        try:
            return Envelope.model_validate(json.loads(self._read(length)))
        except (ValueError, RecursionError) as error:  # ValueError includes pydantic's; RecursionError: nested too deep
            raise Closed from error

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._socket.recv(min(size, 2**20))
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def connect(server: str) -> Link:
    """Connect to the server.

    Args:
        server: path of its Unix socket, or host:port.

    Raises:
        OSError: the server cannot be reached.
    """
    if server.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(server)
        return Link(connection)
    return Link(alive(socket.create_connection(host_and_port(server), timeout=UNREACHABLE_S)))


def host_and_port(address: str) -> tuple[str, int]:
    """Split `host:port`. An IPv6 address is written in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def resolved(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family and the IP address and port of `host:port`.

    Raises:
        OSError: the name does not resolve.
    """
    family, *_, found = socket.getaddrinfo(*host_and_port(address), type=socket.SOCK_STREAM)[0]
    return family, (str(found[0]), int(found[1]))


def alive(connection: socket.socket) -> socket.socket:
    """Set a connection to close once the other machine has been unreachable for `UNREACHABLE_S`; return it."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    third = UNREACHABLE_S // 3
    for option, value in {
        "TCP_KEEPIDLE": third,
        "TCP_KEEPINTVL": third,
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": 1000 * UNREACHABLE_S,
    }.items():
        if hasattr(socket, option):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def sample_message(call: ImageCall) -> tuple[Sample, list[bytes]]:
    """Return the command to draw a call, and its images as attachments."""
    images: list[Image.Image] = []
    arguments = {name: _without_images(value, images) for name, value in call.arguments.items()}
    message = Sample(
        call=replace(call, arguments=arguments),
        images=[ImageShape(mode=image.mode, size=image.size) for image in images],
    )
    return message, [image.tobytes() for image in images]


def call_of(message: Sample, attachments: list[bytes]) -> ImageCall:
    """Return the call that a message describes."""
    images = [
        Image.frombytes(shape.mode, shape.size, data) for shape, data in zip(message.images, attachments, strict=True)
    ]
    arguments = {name: _with_images(value, images) for name, value in message.call.arguments.items()}
    return replace(message.call, arguments=arguments)


def _without_images(value: Any, images: list[Image.Image]) -> Any:
    """Return an argument with each image replaced by its number, and append it to `pictures`."""
    if isinstance(value, Image.Image):
        images.append(value if value.mode in ("L", "RGB", "RGBA") else value.convert("RGB"))
        return {IMAGE: len(images) - 1}
    if isinstance(value, list | tuple):
        return [_without_images(each, images) for each in value]
    return value


def _with_images(value: Any, images: list[Image.Image]) -> Any:
    """Undo :func:`_without_images`."""
    if isinstance(value, dict) and value.keys() == {IMAGE}:
        return images[value[IMAGE]]
    if isinstance(value, list):
        return [_with_images(each, images) for each in value]
    return value


def drawn_message(media: Media, record: SampleRecord) -> tuple[Sampled, list[bytes]]:
    """Return an output as a message, and its arrays as attachments."""
    audio = media.audio if isinstance(media, VideoOutput) else None
    arrays = [media.array, *([audio.array] if audio else [])]
    shapes = [WireArray.model_validate({"dtype": array.dtype.name, "shape": array.shape}) for array in arrays]
    message = Sampled(
        record=RECORD.dump_python(record, mode="json"),
        array=shapes[0],
        finite=isinstance(media, AudioOutput) or media.finite,
        fps=media.fps if isinstance(media, VideoOutput) else None,
        audio=shapes[1] if audio else None,
        rate=media.rate if isinstance(media, AudioOutput) else audio.rate if audio else None,
    )
    return message, [np.ascontiguousarray(array).tobytes() for array in arrays]


def media_of(message: Sampled, attachments: list[bytes], makes: MediaKind) -> tuple[Media, SampleRecord]:
    """Return the output and the record of a message from :func:`drawn_message`.

    Raises:
        ValueError: the attachments do not have the announced shapes.
    """
    array = _array(message.array, attachments[0])
    record = message.record | {"diffs": [math.nan if diff is None else diff for diff in message.record["diffs"]]}
    return _media(message, array, attachments, makes), RECORD.validate_python(record)


def _media(message: Sampled, array: Array, attachments: list[bytes], makes: MediaKind) -> Media:
    if makes is MediaKind.IMAGE:
        return ImageOutput(array, message.finite)
    if makes is MediaKind.AUDIO:
        return AudioOutput(array, message.rate or 0)
    audio = AudioOutput(_array(message.audio, attachments[1]), message.rate or 0) if message.audio else None
    return VideoOutput(array, message.fps or 0.0, audio, message.finite)


def _array(shape: WireArray, data: bytes) -> Array:
    return np.frombuffer(data, dtype=shape.dtype).reshape(shape.shape)
