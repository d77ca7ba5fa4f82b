"""One rank of a model that runs on several, in a process that :mod:`entry` begins.

Rank 0 hears the server's commands and tells the others; all do the same, and stop at the same step. At the end of each
command all compare how it ended: where they differ, or one does not answer, they end, and the server starts anew.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InvalidRequest, LoadError, OutOfMemory
from cache_dit_serving.logs import configure_logs
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.failure import told
from cache_dit_serving.pipeline.parallel import UNDIVIDED
from cache_dit_serving.pipeline.protocol import Facts, Loaded, Stopped, TakePreview
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.runners import wire
from cache_dit_serving.runners.interface import LOOPBACK, bind_transports

logger = logging.getLogger(__name__)

BEAT_S = 1.0
AGREE_S = 10.0
"""Within which all ranks must say how a command ended, after the first has."""
LINGER_S = 1.0
"""Time for the agent to notice the rank whose end made this one fail."""
FOREVER = timedelta(days=3650)
LOADING = timedelta(minutes=30)


class Rank:
    """The state of this process."""

    def __init__(self, rank: int, settings: Settings, link: wire.Link, store: str | None) -> None:
        self.rank = rank
        self._store = store
        self._settings = settings
        self._link = link
        self._control: Any = None
        """The group for commands: idle for as long as nobody asks for anything."""
        self._commands: queue.Queue[tuple[Any, list[bytes]]] = queue.Queue()
        self._cancel = threading.Event()
        self._loaded: Loaded | None = None

    def run(self) -> None:
        """Meet the other ranks, load, then do what comes until told to end.

        Raises:
            LoadError: what stands in the way.
        """
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        self._meet()
        self._loaded = loaded = assemble(self._settings, lambda what: self._say(wire.Stage(what=what)))
        self._say(_ready(loaded))
        while True:
            text, attachments = self._next()
            command = wire.DOWN.validate_python(text)
            if isinstance(command, wire.Exit):
                return
            self._do(loaded, command, attachments)

    def _meet(self) -> None:
        spread = self._settings.parallelism
        assert spread is not None
        on_gpus = self._settings.model.device != "cpu"
        # Ranks load at different paces. Steps that stand still are the server's to notice.
        timeout = max(LOADING, timedelta(seconds=spread.step_timeout_s))
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        if self._store is not None:
            bind_transports(LOOPBACK, always=True)
            store = dist.FileStore(self._store, spread.world_size)
            dist.init_process_group(backend, timeout=timeout, store=store, rank=self.rank, world_size=spread.world_size)
        else:
            own = self._link.own_address or wire.resolved(spread.rendezvous or "")[1][0]
            bind_transports(own, always=False)
            dist.init_process_group(backend, timeout=timeout)
        self._control = dist.new_group(backend="gloo", timeout=FOREVER)

    def _say(self, message: wire.Message, attachments: list[bytes] | None = None) -> None:
        if self.rank == 0:
            self._link.send(message, attachments)

    def _listen(self) -> None:
        """Take commands apart from cancellations; without a server there is nothing left to do."""
        try:
            while True:
                text, attachments = self._link.receive()
                if text.get("kind") == "cancel":
                    self._cancel.set()
                else:
                    self._commands.put((text, attachments))
        except wire.Closed:
            os._exit(1)

    def _beat(self) -> None:
        try:
            while True:
                time.sleep(BEAT_S)
                runner = self._loaded.runner if self._loaded is not None else None
                loras = {name: contents._asdict() for name, contents in runner.loras().items()} if runner else {}
                self._link.send(wire.Beat(memory=runner.memory() if runner else {}, loras=loras))
        except wire.Closed:
            os._exit(1)

    def _next(self) -> tuple[Any, list[bytes]]:
        """The next command, from rank 0 to all, its pictures too."""
        text, attachments = self._commands.get() if self.rank == 0 else (None, [])
        head = json.dumps([text, list(map(len, attachments))]).encode() if self.rank == 0 else b""
        text, lengths = json.loads(self._broadcast(head))
        return text, [self._broadcast(blob) for blob in (attachments if self.rank == 0 else [b""] * len(lengths))]

    def _broadcast(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=self._control)
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else None
        content = torch.empty(int(length), dtype=torch.uint8) if content is None else content
        dist.broadcast(content, 0, group=self._control)
        return content.numpy().tobytes()

    def _do(self, loaded: Loaded, command: wire.Down, attachments: list[bytes]) -> None:
        self._cancel.clear()
        message: wire.Message
        made: list[bytes] = []
        try:
            message, made = self._answer(loaded, command, attachments)
        except Stopped:
            message = wire.Failed(what="stopped", message="")
        except InvalidRequest as error:
            message = wire.Failed(what="invalid", message=error.message, param=error.param)
        except OutOfMemory as error:
            message = wire.Failed(what="out_of_memory", message=error.message)
        except Exception as error:
            logger.exception("rank %d failed", self.rank)
            message = wire.Failed(what="error", message=told(error))
            if UNDIVIDED in str(error):
                why = "this size gives a sequence that the ranks cannot share evenly; choose another size"
                message = wire.Failed(what="invalid", message=why, param="width")
        self._agree(message)
        self._say(message, made)

    def _answer(self, loaded: Loaded, command: wire.Down, attachments: list[bytes]) -> tuple[wire.Message, list[bytes]]:
        runner = loaded.runner
        if isinstance(command, wire.Sample):
            drawn = runner.sample(wire.call_of(command, attachments), self)
            return wire.drawn_message(drawn.media, drawn.record)
        if isinstance(command, wire.Flush):
            return wire.Done(freed=runner.flush()), []
        if isinstance(command, wire.Lora):
            (runner.load_lora if command.loaded else runner.unload_lora)(command.name)
        return wire.Done(), []

    @property
    def cancelled(self) -> bool:
        """Rank 0's word, for all; asked after each step."""
        flag = torch.tensor([int(self._cancel.is_set())])
        dist.broadcast(flag, 0, group=self._control)
        return bool(flag)

    def progress(self, done: int, cached: int) -> None:
        self._say(wire.Progress(done=done, cached=cached))

    def preview(self, done: int, take: TakePreview) -> None:
        pass  # latents do not leave the ranks

    def _agree(self, answer: wire.Message) -> None:
        """End unless all ranks ended the command alike."""
        kinds = ("stopped", "invalid", "out_of_memory", "error")
        mine = 1 + kinds.index(answer.what) if isinstance(answer, wire.Failed) else 0
        every = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        work = dist.all_gather(every, torch.tensor([mine]), group=self._control, async_op=True)
        try:
            # One that failed waits for those that are still in a step, or for ever in an exchange without it.
            work.wait(timedelta(seconds=AGREE_S) if mine else FOREVER)
            agreed = {int(each) for each in every} == {mine}
        except RuntimeError:
            agreed = False
        if not agreed:
            failed = answer if isinstance(answer, wire.Failed) else wire.Failed(what="error", message=wire.ANOTHER)
            self._link.send(failed.model_copy(update={"fatal": True}))
            fail()


def _ready(loaded: Loaded) -> wire.Ready:
    traits, facts, loras = TypeAdapter(PipelineTraits), TypeAdapter(Facts), TypeAdapter(LoraTraits)
    support = TypeAdapter(type(loaded.model.speeds.support))
    return wire.Ready(
        facts=facts.dump_python(loaded.runner.facts, mode="json"),
        variants=[
            {
                # Types of arguments: JSON has none, and the server finds them by the class.
                "traits": traits.dump_python(variant.traits, mode="json", exclude={"extra_arguments"}),
                "support": support.dump_python(variant.speeds.support, mode="json"),
            }
            for variant in loaded.model.variants
        ],
        loras=[loras.dump_python(lora, mode="json") for lora in loaded.model.loras],
    )


def main(number: int, server: str, token: str) -> None:
    """Run a rank until the server ends it or has gone."""
    try:
        link = wire.connect(server)
        link.send(wire.Hello(rank=number, pid=os.getpid(), token=token))
        brief = wire.Brief.model_validate(link.receive()[0])
    except (OSError, wire.Closed):
        os._exit(1)  # the server has gone
    settings = Settings.model_validate(brief.settings)
    configure_logs(settings.server.log_level, settings.server.log_format, f"rank-{number}")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if brief.on_gpus else "cpu"
    model = settings.model.model_copy(update={"device": device})
    try:
        Rank(number, settings.model_copy(update={"model": model}), link, brief.store).run()
    except LoadError as error:
        link.send(wire.Failed(what="invalid", message=str(error), fatal=True))
        os._exit(1)
    except wire.Closed:
        os._exit(1)
    dist.destroy_process_group()


def fail() -> NoReturn:
    """End this process, after the one that befell it: torch's agent names only the first that it sees ended."""
    time.sleep(LINGER_S)
    os._exit(1)
