"""Decoding in processes of its own: the same pixels, within bounds of time, memory and number."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest, NotReady, QueueFull
from cache_dit_serving.media.decode.decoder import Decoder
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.inputs import ImageReader
from tests.support.ctrl_c import interrupted
from tests.support.images import apple, data_uri, file_of, mask, noise
from tests.support.videos import mp4

T = TypeVar("T")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited, and the parent watched, on Linux alone")
PNG = file_of(noise(96, 64))


@contextmanager
def pool(max_waiting: int = 4, **settings: Any) -> Iterator[DecodingPool]:
    decoding = DecodingPool(InputSettings(**settings), max_waiting)
    try:
        yield decoding
    finally:
        decoding.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[DecodingPool]:
    with pool() as decoding:
        yield decoding


def run(decoding: DecodingPool, what: Callable[[Decoder], T]) -> T:
    async def main() -> T:
        return await decoding.run(what)

    return asyncio.run(main())


def stuck(pids: list[int]) -> Callable[[Decoder], Any]:
    """Work that never ends by itself: its process is stopped, as one deep in a decoder looks from outside."""

    def work(decoder: Decoder) -> Any:
        pids.append(decoder.pid)
        os.kill(decoder.pid, signal.SIGSTOP)
        return decoder.image("picture", PNG, "image_urls.0")

    return work


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - a process that ends gives no event here
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind", ["picture", "mask"])
@pytest.mark.parametrize(
    "sent",
    [PNG, data_uri(PNG), "\N{NO-BREAK SPACE}" + data_uri(PNG), file_of(apple(), "JPEG"), file_of(mask(), "WEBP")],
)
def test_pictures_are_those_of_the_reader_to_the_bit(shared: DecodingPool, kind: Any, sent: str | bytes) -> None:
    ours = run(shared, lambda decoder: decoder.image(kind, sent, "image_urls.0"))
    reader = ImageReader(InputSettings())
    content = reader.from_text(sent.lstrip().encode(), "a") if isinstance(sent, str) else sent
    expected = reader.mask(content, "a") if kind == "mask" else reader.image(content, "a")
    assert (ours.image.mode, ours.digest) == (expected.image.mode, expected.digest)
    assert np.array_equal(np.asarray(ours.image), np.asarray(expected.image))


def test_videos_are_those_of_the_reader_to_the_bit(shared: DecodingPool) -> None:
    content = mp4()
    ours = run(shared, lambda decoder: decoder.video(content, "video_url", 9))
    expected = ImageReader(InputSettings()).video(content, "video_url", 9)
    assert (ours.fps, ours.more, ours.digest) == (expected.fps, expected.more, expected.digest)
    assert np.array_equal(
        np.stack(list(map(np.asarray, ours.frames))), np.stack(list(map(np.asarray, expected.frames)))
    )


@pytest.mark.parametrize("image", [noise(300, 200), mask(300, 200)])
def test_resizing_is_pils_to_the_bit(shared: DecodingPool, image: Image.Image) -> None:
    ours = run(shared, lambda decoder: decoder.fitted(image, (96, 112), "image_urls.0", "stretch"))
    assert np.array_equal(np.asarray(ours), np.asarray(image.resize((96, 112), Image.Resampling.LANCZOS)))


def test_a_refusal_is_the_readers_and_the_process_stays(shared: DecodingPool) -> None:
    first = run(shared, lambda decoder: decoder.pid)
    for sent, words in ((b"no picture", "not a picture this server reads"), ("data:text/html,a", "without base64")):
        with pytest.raises(InvalidRequest, match=words) as refused:
            run(shared, lambda decoder, sent=sent: decoder.image("picture", sent, "mask_url"))  # type: ignore[misc]
        assert refused.value.param == "mask_url"
    assert run(shared, lambda decoder: decoder.pid) == first


def test_the_pixels_of_one_request_count_together_and_of_the_next_anew() -> None:
    def twice(decoder: Decoder) -> None:
        decoder.image("picture", PNG, "image_urls.0")
        decoder.image("picture", PNG, "image_urls.1")

    with pool(max_pixels=96 * 64 + 4096) as decoding:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=r"image_urls\.1 has 96 x 64 pixels"):
                run(decoding, twice)


def test_a_file_that_takes_too_long_is_refused_by_field_and_the_next_one_is_read() -> None:
    pids: list[int] = []
    with pool(decoders=1, max_decode_s=0.2) as decoding:
        with pytest.raises(InvalidRequest, match=r"image_urls\.0 takes more than 0\.2 s to decode"):
            run(decoding, stuck(pids))
        assert not alive(pids[0])
    with pool(decoders=1, max_decode_s=20) as decoding:
        assert run(decoding, lambda decoder: decoder.image("picture", PNG, "a")).size == (96, 64)


@LINUX
def test_a_file_that_takes_too_much_memory_is_refused_by_field_and_the_next_one_is_read() -> None:
    large = file_of(Image.new("RGB", (4000, 4000)))
    with pool(decoders=1, max_decode_bytes=2**25) as decoding:
        with pytest.raises(InvalidRequest, match=r"image_urls\.0 takes more memory") as refused:
            run(decoding, lambda decoder: decoder.image("picture", large, "image_urls.0"))
        assert refused.value.param == "image_urls.0"
        assert run(decoding, lambda decoder: decoder.image("picture", PNG, "a")).size == (96, 64)


def test_the_largest_picture_allowed_fits_the_memory() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    content = file_of(Image.new("RGBA", (5792, 5792), (9, 8, 7, 100)), exif=tags, compress_level=1)
    with pool() as decoding:
        assert run(decoding, lambda decoder: decoder.image("picture", content, "a")).size == (5792, 5792)


def test_a_process_that_crashes_costs_its_own_request_alone(shared: DecodingPool) -> None:
    def crash(decoder: Decoder) -> Any:
        decoder.kill()
        return decoder.image("picture", PNG, "control_url")

    with pytest.raises(InvalidRequest) as refused:
        run(shared, crash)
    assert refused.value.param == "control_url"
    assert run(shared, lambda decoder: decoder.image("picture", PNG, "a")).size == (96, 64)


def test_decoding_ends_with_the_request_that_is_cancelled() -> None:
    async def main(decoding: DecodingPool) -> None:
        pids: list[int] = []
        task = asyncio.create_task(decoding.run(stuck(pids)))
        await until(lambda: pids)
        task.cancel()
        await until(lambda: not alive(pids[0]))
        # The one decoder there may be is free again.
        await decoding.run(lambda decoder: decoder.image("picture", PNG, "a"))

    with pool(decoders=1) as decoding:
        asyncio.run(main(decoding))


def test_an_honest_request_is_read_beside_one_that_is_stuck() -> None:
    async def main(decoding: DecodingPool) -> None:
        pids: list[int] = []
        task = asyncio.create_task(decoding.run(stuck(pids)))
        await until(lambda: pids)
        await decoding.run(lambda decoder: decoder.image("picture", PNG, "a"))
        assert not task.done()
        task.cancel()

    with pool(decoders=2) as decoding:
        asyncio.run(main(decoding))


def test_closing_ends_what_runs_and_what_waits_at_once() -> None:
    async def main(decoding: DecodingPool) -> None:
        pids: list[int] = []
        tasks = [asyncio.create_task(decoding.run(stuck(pids))) for _ in range(3)]
        await until(lambda: pids)
        decoding.close()
        async with asyncio.timeout(5):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [NotReady] * 3
        assert not any(map(alive, pids))
        with pytest.raises(NotReady):
            await decoding.run(lambda decoder: decoder.pid)

    with pool(decoders=1) as decoding:
        asyncio.run(main(decoding))


def test_more_requests_than_may_wait_are_refused() -> None:
    async def main(decoding: DecodingPool) -> None:
        pids: list[int] = []
        tasks = [asyncio.create_task(decoding.run(stuck(pids))) for _ in range(2)]
        await until(lambda: pids)
        with pytest.raises(QueueFull):
            await decoding.run(lambda decoder: decoder.pid)
        for task in tasks:
            task.cancel()

    with pool(1, decoders=1) as decoding:
        asyncio.run(main(decoding))


@LINUX
def test_the_process_holds_neither_the_servers_secrets_nor_torch(
    shared: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    with pool() as decoding:
        pid = run(decoding, lambda decoder: decoder.pid)
        assert b"a-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        assert psutil.Process(pid).memory_info().rss < 150 * 2**20


INTERRUPTED = """
import asyncio, os, signal
from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.media.decode.pool import DecodingPool

def work(decoder):
    print("ready", flush=True)
    input()
    return decoder.image("picture", open(os.environ["PICTURE"], "rb").read(), "a").image.width

signal.signal(signal.SIGINT, lambda number, frame: print("Ctrl-C", flush=True))
print(asyncio.run(DecodingPool(InputSettings(), 1).run(work)), flush=True)
os._exit(0)
"""


def test_ctrl_c_at_the_terminal_ends_no_decoding(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 10)).save(picture)
    assert interrupted(INTERRUPTED, PICTURE=str(picture)) == ("Ctrl-C\n20\n", "")


LIVING = """
import asyncio, os, signal
from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.media.decode.pool import DecodingPool

def work(decoder):
    os.kill(decoder.pid, signal.SIGSTOP)
    print(decoder.pid, flush=True)
    decoder.picture("picture", b"", "a")

asyncio.run(DecodingPool(InputSettings(), 1).run(work))
"""


@LINUX
def test_a_busy_process_does_not_outlive_a_server_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", LIVING], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    main: Coroutine[Any, Any, None] = until(lambda: not alive(pid))
    asyncio.run(main)
