"""A change to uvicorn 0.54's HTTP protocol, which no setting makes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol


def refuse_broken_framing_once() -> None:
    """Have a body whose framing breaks refused without a traceback in the log.

    uvicorn 0.54 answers 400 to bytes that are no HTTP, whatever it has sent before. Where the application has begun to
    answer, h11 refuses the second answer by an exception in the event loop. Where it has not, h11 refuses the
    application's own answer. Any client could fill the log with either.
    """
    # Here: the supervisor imports this module too, and has no use for uvicorn.
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    original = H11Protocol.send_400_response
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def send_400_response(protocol: H11Protocol, msg: str) -> None:
        if (cycle := protocol.cycle) is not None and not cycle.response_complete:
            cycle.disconnected = True  # its answer is dropped from here on, as for a client that has gone
            cycle.message_event.set()
        if protocol.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            original(protocol, msg)
        else:
            protocol.transport.close()

    setattr(H11Protocol, original.__name__, send_400_response)
