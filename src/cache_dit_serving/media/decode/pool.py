"""Pool of decoder processes. They start on demand; one that exceeds its time limit is killed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Generic, TypeVar

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InternalError, InvalidRequest, NotReady, QueueFull, ServingError
from cache_dit_serving.media.decode.decoder import Decoder, too_large
from cache_dit_serving.media.decode.wire import Ended

T = TypeVar("T")
RETRY_S = 2.0


class _Why(Enum):
    """Reason for killing a decoder in the middle of its work."""

    TIME = "time"
    GONE = "gone"
    CLOSING = "closing"


class DecodingPool:
    """Pool of at most `inputs.decoders` decoder processes, each driven by a thread of the pool."""

    def __init__(self, settings: InputSettings, max_waiting: int) -> None:
        """
        Args:
            max_waiting: maximum number of requests that wait for a decoder.
        """
        self._settings = settings
        self._max_pending = max_waiting + settings.decoders
        self._threads = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decoding")
        self._idle: list[Decoder] = []
        self._pending: set[_Work[Any]] = set()
        self._closed = False

    async def run(self, what: Callable[[Decoder], T]) -> T:
        """Call `what` with a decoder, on a thread. Cancelling the call kills the decoder.

        Raises:
            InvalidRequest: a file took too long or too much memory, or `what` raised it; names the field.
            QueueFull: `max_waiting` requests wait already.
            NotReady: the pool is closed.
        """
        if len(self._pending) >= self._max_pending:
            raise QueueFull("too many requests with pictures or videos wait; come back later", retry_after_s=RETRY_S)
        work = _Work(what)
        self._pending.add(work)
        try:
            return await asyncio.wrap_future(self._threads.submit(self._do, work))
        except asyncio.CancelledError:
            work.stop(_Why.GONE)
            raise
        except RuntimeError:  # the executor is shut down
            if not self._closed:
                raise
            raise _draining() from None
        finally:
            self._pending.discard(work)

    def close(self) -> None:
        """Kill all decoders and refuse the waiting requests. May be called from any thread."""
        self._closed = True
        for work in list(self._pending):
            work.stop(_Why.CLOSING)
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()
        self._threads.shutdown(wait=False)

    def _do(self, work: _Work[T]) -> T:
        if self._closed:
            raise _draining()
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = Decoder(self._settings)
        begun = False
        try:
            with work.held_by(decoder):
                decoder.begin()
                begun = True
                with work.limited(self._settings.max_decode_s):
                    return work.what(decoder)
        except Ended:
            raise self._told(work.why, decoder.param if begun else None) from None
        finally:
            if work.ended or self._closed:
                decoder.close()
            else:
                self._idle.append(decoder)

    def _told(self, why: _Why | None, param: str | None) -> ServingError:
        """Return the error for a request whose decoder ended."""
        if why is _Why.CLOSING:
            return _draining()
        if param is None:
            return InternalError()
        if why is _Why.TIME:
            seconds = self._settings.max_decode_s
            return InvalidRequest(f"{param} takes more than {seconds:g} s to decode; send a smaller one", param=param)
        return too_large(param)


class _Work(Generic[T]):
    """One request's work and the decoder that does it."""

    def __init__(self, what: Callable[[Decoder], T]) -> None:
        self.what = what
        self.why: _Why | None = None
        self.ended = False
        """True once the decoder must not be reused."""
        self._lock = threading.Lock()
        self._decoder: Decoder | None = None

    @contextlib.contextmanager
    def held_by(self, decoder: Decoder) -> Iterator[None]:
        """Context in which :meth:`stop` can kill the decoder."""
        with self._lock:
            self._decoder = decoder
            if self.why is not None:
                decoder.kill()
        try:
            yield
        except InvalidRequest:
            raise  # an answer of the decoder, which stays usable
        except BaseException:
            self.ended = True
            raise
        finally:
            with self._lock:
                self._decoder = None
                self.ended |= self.why is not None

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Context that kills the decoder after `seconds`."""
        timer = threading.Timer(seconds, self.stop, [_Why.TIME])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def stop(self, why: _Why) -> None:
        """Kill the decoder that does this work, if any. May be called from any thread."""
        with self._lock:
            self.why = self.why or why
            if self._decoder is not None:
                self._decoder.kill()


def _draining() -> NotReady:
    return NotReady("the server is shutting down; it takes no more requests", code="draining")
