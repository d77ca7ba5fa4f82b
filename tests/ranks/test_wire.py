"""The messages between the server's process and its ranks."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cache_dit_serving.caching.settings import CacheSettings, Reason
from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice
from cache_dit_serving.media.values import AudioOutput, ImageOutput, MediaKind, VideoOutput
from cache_dit_serving.planning.call import ImageCall, VideoSpec
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.model import AskedToProfile
from cache_dit_serving.planning.samplers import SamplerChoice
from cache_dit_serving.ranks import wire
from tests.support.images import apple
from tests.support.records import record_of
from tools.snapshot import WIRE, rendered, wire_document

CALL = ImageCall(
    arguments={
        "prompt": "a cat",
        "image": apple(16, 8),
        "video": [apple(8, 8).convert("L"), apple(8, 8)],
        "width": 64,
        "sigmas": [1.0, 0.5],
        "negative_prompt": None,
    },
    seed=2**53 - 1,
    cache=CacheChoice(
        CacheSettings(cache_type="DBPrune", max_warmup_steps=3),
        "custom",
        strict=True,
        no_cache_reason=Reason("unsupported", "it cannot"),
        inherited=frozenset({"max_warmup_steps"}),
    ),
    num_inference_steps=7,
    passes=2,
    pipeline_class="WanPipeline",
    pixels=64 * 64 * 9,
    loras=(LoraChoice("a", 0.5),),
    sampler=SamplerChoice("unipc", 3.0),
    video=VideoSpec(9, 16.0),
    makes=MediaKind.VIDEO,
    profile=AskedToProfile.BY_REQUEST,
    keep_floats=True,
    caller="shop",
)
"""No field of it has its default, so that one which is lost on the way shows."""


def over_json(message: Any) -> Any:
    return json.loads(json.dumps(message.model_dump(mode="json")))


def test_the_messages_are_those_of_the_snapshot() -> None:
    assert WIRE.read_text(encoding="utf-8") == rendered(wire_document())


@pytest.mark.parametrize("call", [CALL, replace(CALL, cache=WITHOUT_CACHE, video=None)], ids=["cached", "lossless"])
def test_a_call_arrives_as_it_was_sent(call: ImageCall) -> None:
    message, pictures = wire.sample_message(call)
    back = wire.call_of(wire.Sample.model_validate(over_json(message)), pictures)
    assert [each.tobytes() for each in (back.arguments.pop("image"), *back.arguments.pop("video"))] == [
        each.tobytes() for each in (call.arguments["image"], *call.arguments["video"])
    ]
    without_pictures = {name: value for name, value in call.arguments.items() if name not in ("image", "video")}
    assert back == replace(call, arguments=without_pictures)


def test_the_call_that_is_sent_has_no_field_at_its_default() -> None:
    for field in fields(CALL):
        assert getattr(CALL, field.name) != field.default, f"give {field.name} another value, so that its loss shows"


@pytest.mark.parametrize(
    ("media", "makes"),
    [
        (ImageOutput(np.random.default_rng(0).random((4, 5, 3), dtype=np.float32)), MediaKind.IMAGE),
        (ImageOutput(np.full((4, 5, 3), 200, np.uint8), finite=False), MediaKind.IMAGE),
        (VideoOutput(np.zeros((2, 4, 5, 3), np.float32), 16.0), MediaKind.VIDEO),
        (VideoOutput(np.ones((2, 4, 5, 3), np.uint8), 16.0, finite=False), MediaKind.VIDEO),
        (
            VideoOutput(np.ones((2, 4, 5, 3), np.float32), 24.0, AudioOutput(np.ones((2, 9), np.float32), 48_000)),
            MediaKind.VIDEO,
        ),
        (AudioOutput(np.full((1, 7), -0.5, np.float64), 44_100), MediaKind.AUDIO),
    ],
)
def test_an_output_arrives_as_it_was_sent(media: Any, makes: MediaKind) -> None:
    record = replace(record_of(CALL), diffs=[0.1, float("nan")], cached_steps_s=None)
    message, blobs = wire.drawn_message(media, record)
    back, its_record = wire.media_of(wire.Sampled.model_validate(over_json(message)), blobs, makes)
    assert type(back) is type(media)
    assert np.array_equal(back.array, media.array)
    assert back.array.dtype == media.array.dtype
    assert getattr(back, "finite", True) == getattr(media, "finite", True)
    assert (getattr(back, "fps", None), getattr(back, "rate", None)) == (
        getattr(media, "fps", None),
        getattr(media, "rate", None),
    )
    if sound := getattr(media, "sound", None):
        assert isinstance(back, VideoOutput)
        assert back.audio is not None
        assert back.audio.rate == sound.rate
        assert np.array_equal(back.audio.array, sound.array)
    assert its_record.diffs[0] == 0.1
    assert np.isnan(its_record.diffs[1])
    assert replace(its_record, diffs=[]) == replace(record, diffs=[])


@pytest.mark.parametrize(
    "text",
    [{"kind": "run", "code": "1"}, {"kind": "sample"}, {"kind": "lora", "name": "a", "loaded": True, "more": 1}, []],
)
def test_what_is_no_message_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        wire.DOWN.validate_python(text)


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 4000,
        b'{"message": ' + b'{"a":' * 700,
        b'{"message": {"kind": "join"}, "lengths": [-1]}',
        b'{"message": ' + b"9" * 4000 + b', "lengths": []}',
        b'{"lengths": []}',
        b"null",
        b"\xff",
    ],
    ids=lambda said: str(said[:30]),
)
def test_what_is_no_greeting_ends_the_connection(said: bytes) -> None:
    for text in (said, said * 20):  # also one that is longer than a greeting may be
        ours, theirs = socket.socketpair()
        with ours, wire.Link(theirs) as link:
            ours.sendall(wire.LENGTH.pack(len(text)) + text)
            with pytest.raises(wire.Closed):
                link.greeting()
    ours, theirs = socket.socketpair()
    with ours, wire.Link(theirs) as link:
        ours.sendall(wire.LENGTH.pack(len(said)) + said)
        with pytest.raises((wire.Closed, ValidationError)):
            wire.UP.validate_python(link.receive()[0])


def test_a_greeting_that_comes_byte_by_byte_ends_the_connection_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "GREETING_S", 0.2)
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(wire.LENGTH.pack(100) + b"{")
        with pytest.raises(wire.Closed):
            wire.Link(theirs).greeting()


def test_a_link_carries_large_attachments_and_ends() -> None:
    ours, theirs = socket.socketpair()
    blobs = [b"a" * (3 * 2**20), b"", b"b"]
    sending = threading.Thread(target=lambda: wire.Link(ours).send(wire.Flush(), blobs))
    sending.start()
    link = wire.Link(theirs)
    assert link.receive() == ({"kind": "flush"}, blobs)
    sending.join()
    ours.close()
    with link, pytest.raises(wire.Closed):
        link.receive()
    ours, theirs = socket.socketpair()
    ours.sendall(wire.LENGTH.pack(2**60))
    with ours, wire.Link(theirs) as link, pytest.raises(wire.Closed):
        link.receive()
