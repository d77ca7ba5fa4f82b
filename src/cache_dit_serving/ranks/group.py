"""The server's handle on the ranks of one model. It starts them by torch's elastic agents and ends them as a whole.

This machine's agent runs in a thread here. Other machines run theirs with `cache-dit-serving join`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable

from pydantic import ValidationError

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError, RunnerLost
from cache_dit_serving.held_folder import HeldFolder
from cache_dit_serving.planning.loras import LoraContents
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.agent import POLL_S, run_ranks
from cache_dit_serving.ranks.interface import warn_of_open_ports
from cache_dit_serving.ranks.versions import differing

logger = logging.getLogger(__name__)

SILENT_S = 30.0
"""Maximum time without a message from a rank, seconds. After it the rank counts as hung."""
ENDING_S = 10.0
"""Maximum wait for the ranks to exit by themselves, seconds. After it they are killed."""
REASON_S = 1.0
"""Delay before a closed connection counts as the cause of a loss, seconds. A failed rank's own report comes first."""


class Group:
    """Group of ranks. It receives messages from every rank and sends commands to rank 0."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            LoadError: the rendezvous' address cannot be listened at, or several nodes have no join token.
        """
        import torch

        assert settings.parallelism is not None
        self._spread = settings.parallelism
        self._settings = settings
        self._on_gpus = settings.model.device != "cpu" and torch.cuda.is_available()
        self.size = self._spread.world_size
        self._token = secrets.token_hex(16)
        self._join_token = os.environ.get(wire.JOIN_TOKEN, "")
        self._listening: list[socket.socket] = []
        self._meeting: socket.socket | None = None
        """Socket of the rendezvous of several machines' agents, at a free port of the rendezvous' host."""
        if self._spread.nodes > 1:
            if not self._join_token:
                raise LoadError(f"parallelism.nodes: set {wire.JOIN_TOKEN} to a secret, the same one on every node")
            self._listening.append(_listening_at(self._spread.rendezvous or "", self.size))
            host = self._rendezvous_host()
            self._meeting = _listening_at(f"{host}:0", self._spread.nodes)
        self._folder = HeldFolder("ranks")
        self._path = str(self._folder.path / "socket")
        self._listening.append(_listening_at(self._path, self.size))
        self._links: dict[int, wire.Link] = {}
        self._pids: dict[int, int] = {}
        """Process ids of the ranks on this machine, by rank."""
        self._heard: dict[int, float] = {}
        """Time of the last message of each rank, seconds of the monotonic clock."""
        self._nodes: list[wire.Link] = []
        """Other machines in the order of joining. Surplus ones wait for the next group."""
        self._gathered = threading.Condition()
        self._placed = False
        self._closing = False
        self._lost: str | None = None
        self._ended = False
        self.messages: queue.Queue[tuple[wire.Up, list[bytes]]] = queue.Queue()
        """Messages of rank 0 with their attachments."""
        self.memory: dict[str, int] = {}
        """Memory that rank 0 reported last, bytes."""
        self.loras: dict[str, LoraContents] = {}
        """Loaded LoRAs that rank 0 reported last."""

    def start(self, progress: Callable[[str], None]) -> None:
        """Wait until the other machines have joined, without a time limit, then start the ranks everywhere."""
        atexit.register(self.close)  # runs before multiprocessing's own handler, which waits for the ranks for ever
        for listening in self._listening:
            threading.Thread(target=self._accept, args=(listening,), daemon=True, name="ranks").start()
        nodes, ranks = self._spread.nodes, self._spread.ranks_per_node
        endpoint = self._endpoint()
        if nodes > 1:
            warn_of_open_ports(self._spread.rendezvous or "", endpoint)
        self._await_nodes(nodes - 1, progress)
        progress(f"starting {self.size} ranks" + (f" on {nodes} nodes" if nodes > 1 else ""))
        place = wire.Place(
            node=0,
            nodes=nodes,
            ranks=ranks,
            endpoint=endpoint,
            group=secrets.token_hex(4),
            token=self._token,
        )
        for number, link in enumerate(self._nodes[: nodes - 1], 1):
            try:
                link.send(place.model_copy(update={"node": number}))
            except wire.Closed:
                self.lose(f"node {number} ended")
        threading.Thread(target=self._agent, args=(place,), daemon=True, name="elastic").start()

    @property
    def lost(self) -> str | None:
        """Reason why the ranks are lost; None while they are usable."""
        silent = [rank for rank, when in self._heard.items() if time.monotonic() - when > SILENT_S]
        if silent:
            self.lose(f"rank {silent[0]} hangs: nothing was heard of it for {SILENT_S:g} s")
        return self._lost

    @property
    def ended(self) -> bool:
        """True once a rank or a node has ended, even before the reason is known."""
        return self._ended or self.lost is not None

    def check(self) -> None:
        """Raise if the ranks are lost.

        Raises:
            RunnerLost: the ranks are lost.
        """
        if (reason := self.lost) is not None:
            raise RunnerLost(reason)

    def lose(self, reason: str) -> None:
        """Declare the ranks lost. The first reason is kept."""
        if self._lost is None and not self._closing:
            logger.error("the ranks are given up: %s", reason)
            self._lost = reason

    def send(self, message: wire.Message, attachments: list[bytes] | None = None) -> None:
        """Send a command to rank 0.

        Raises:
            RunnerLost: the ranks are lost.
        """
        self.check()
        try:
            self._links[0].send(message, attachments)
        except wire.Closed:
            self.lose("rank 0 ended")
            self.check()

    def close(self) -> None:
        """End all ranks. Other machines end theirs when their connection closes."""
        atexit.unregister(self.close)
        with self._gathered:
            self._closing = True
        try:
            if self._lost is None and 0 in self._links:
                self._links[0].send(wire.Exit())
                self._until_ended(ENDING_S)
        except wire.Closed:
            pass
        for pid in self._pids.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for listening in [*self._listening, *([self._meeting] if self._meeting else [])]:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread, which would keep it open
            listening.close()
        for link in [*self._links.values(), *self._nodes]:
            link.close()
        self._folder.remove()

    def _until_ended(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(map(_runs, self._pids.values())):
            time.sleep(POLL_S)

    def _await_nodes(self, others: int, progress: Callable[[str], None]) -> None:
        last_logged = 0
        with self._gathered:
            while (missing := others - len(self._nodes)) > 0:
                if missing != last_logged:
                    where = f"cache-dit-serving join {self._spread.rendezvous}"
                    progress(f"waiting for {missing} of {others + 1} nodes to join ({where})")
                    last_logged = missing
                self._gathered.wait()
            self._placed = True

    def _endpoint(self) -> str:
        """Return host:port of the agents' rendezvous; empty on one machine."""
        return f"{self._rendezvous_host()}:{self._meeting.getsockname()[1]}" if self._meeting else ""

    def _rendezvous_host(self) -> str:
        return (self._spread.rendezvous or "").rpartition(":")[0]

    def _accept(self, listening: socket.socket) -> None:
        try:
            while True:
                connection, _ = listening.accept()
                if listening.family != socket.AF_UNIX:
                    wire.alive(connection)
                threading.Thread(target=self._listen, args=(wire.Link(connection),), daemon=True).start()
        except OSError:
            return  # closed

    def _listen(self, link: wire.Link) -> None:
        """Serve one connection until it ends."""
        try:
            greeting = link.greeting()
        except wire.Closed:
            link.close()
            return
        if isinstance(greeting, wire.Join):
            self._take_node(link, greeting)
        elif _same(greeting.token, self._token):
            self._take_rank(link, greeting)
        else:
            link.close()

    def _take_node(self, link: wire.Link, join: wire.Join) -> None:
        """Keep another machine in the group until its connection ends. An unfit one is refused."""
        if (why := self._unfit(join)) is not None:
            logger.warning("a node may not join: %s", why)
            with link:
                link.send(wire.Failed(what="invalid", message=why))
            return
        with self._gathered:
            if self._closing:
                link.close()
                return
            self._nodes.append(link)
            self._gathered.notify()
        try:
            while True:
                link.receive()
        except wire.Closed:
            with self._gathered:
                number = 1 + self._nodes.index(link)
                if not self._placed or number >= self._spread.nodes:
                    self._nodes.remove(link)
                    self._gathered.notify()
                    return
            self._ended = True
            time.sleep(REASON_S)
            self.lose(f"node {number} ended")

    def _unfit(self, join: wire.Join) -> str | None:
        if self._spread.nodes == 1 or not _same(join.token, self._join_token):
            return f"{wire.JOIN_TOKEN} is not the server's"
        if other := differing(join.versions):
            return other
        needed = self._spread.ranks_per_node if self._on_gpus else 0
        if join.gpus < needed:
            return f"this node has {join.gpus} GPUs, and each node needs {needed}"
        return None

    def _take_rank(self, link: wire.Link, hello: wire.Hello) -> None:
        rank = hello.rank
        self._links[rank] = link
        if link.local:
            self._pids[rank] = hello.pid
        try:
            # Defaults are left out: set explicitly, one may be refused as having no effect.
            given = self._settings.model_dump(mode="json", exclude_defaults=True)
            store = str(self._folder.path / "store") if self._spread.nodes == 1 else None
            link.send(wire.Brief(settings=given, on_gpus=self._on_gpus, store=store))
            while True:
                text, attachments = link.receive()
                self._heard[rank] = time.monotonic()
                self._hear(rank, wire.UP.validate_python(text), attachments)
        except wire.Closed:
            self._ended = True
            time.sleep(REASON_S)
            self.lose(f"rank {rank} ended")
        except ValidationError:
            logger.exception("a message of rank %s is not valid", rank)
            self.lose(f"rank {rank} says what is not understood")

    def _hear(self, rank: int, message: wire.Up, attachments: list[bytes]) -> None:
        if isinstance(message, wire.Failed) and message.fatal:
            if message.message == wire.ANOTHER:
                return
            if message.what == "invalid":
                self.messages.put((message, attachments))
            self._ended = True
            if message.what == "error":
                time.sleep(REASON_S)  # it may have failed only because another rank ended
            what = "ran out of memory" if message.what == "out_of_memory" else f"failed: {message.message}"
            self.lose(f"rank {rank} {what}")
        elif isinstance(message, wire.Beat):
            if rank == 0:
                self.memory = message.memory
                self.loras = {name: LoraContents(**fields) for name, fields in message.loras.items()}
        elif rank == 0:
            self.messages.put((message, attachments))

    def _agent(self, place: wire.Place) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        try:
            run_ranks(place, self._path, self._meeting)
        except ChildFailedError as error:
            ends = ", ".join(
                f"rank {rank} by {failure.signal_name() if failure.exitcode < 0 else f'exit code {failure.exitcode}'}"
                for rank, failure in error.failures.items()
            )
            logger.error("the ranks have ended: %s", ends)
            self.lose(f"the ranks ended ({ends})")
        except Exception as error:  # noqa: BLE001 (whatever the error, the ranks have ended)
            self.lose(f"the ranks ended ({type(error).__name__})")


def _listening_at(address: str, backlog: int) -> socket.socket:
    """Return a listening socket at a path or at host:port.

    Raises:
        LoadError: this machine cannot listen at host:port.
    """
    if address.startswith("/"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen(backlog)
        return listening
    try:
        family, resolved = wire.resolved(address)
        return socket.create_server(resolved, family=family, backlog=backlog)
    except OSError as error:
        raise LoadError(f"parallelism.rendezvous: this machine cannot listen at {address}: {error}") from error


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode(errors="replace"))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
