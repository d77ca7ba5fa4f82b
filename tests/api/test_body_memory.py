"""Memory of large bodies: what the server has read and answered is free again, whatever the allocator keeps of it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tests.support.envelope import LOCAL, around

BODY_BYTES, CHUNK_BYTES = 15_000_000, 65_536
AT_ONCE, ROUNDS = 3, 3
LIBC = ctypes.CDLL(None)
HEAD = (
    b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na red apple\r\n'
    b'--B\r\nContent-Disposition: form-data; name="image_urls"; filename="a.png"\r\n\r\n'
)


class InUse(ctypes.Structure):
    """glibc's `struct mallinfo2`, mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> int:
    """Bytes that are allocated and not freed."""
    gc.collect()
    LIBC.mallinfo2.restype = InUse
    told = LIBC.mallinfo2()
    return int(told.uordblks + told.hblkhd)


async def read_and_drop(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["body"]
    await JSONResponse({})(scope, receive, send)


async def chunks() -> AsyncIterator[bytes]:
    yield HEAD
    for _ in range(BODY_BYTES // CHUNK_BYTES):
        yield bytes(CHUNK_BYTES)
    yield b"\r\n--B--\r\n"


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="the C library is not glibc 2.33 or later")
def test_bodies_that_were_answered_leave_nothing_in_use() -> None:
    transport = httpx.ASGITransport(around(read_and_drop))  # type: ignore[arg-type]

    async def rounds() -> list[int]:
        taken = []
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            for _ in range(ROUNDS):
                headers = {"Content-Type": "multipart/form-data; boundary=B"}
                sent = [client.post("/generate", content=chunks(), headers=headers) for _ in range(AT_ONCE)]
                assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}
                taken.append(in_use())
        return taken

    first, *later = asyncio.run(rounds())
    assert max(later) - first < BODY_BYTES / 10
