"""One rank of a model on several ranks, in a process that :mod:`entry` starts.

Rank 0 receives the server's commands and broadcasts them. All ranks run the same command and stop at the same step.
After each command they compare the outcomes. If these differ, or a rank does not answer, the ranks end and the server
starts new ones.
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
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.parallel import UNDIVIDED
from cache_dit_serving.pipeline.protocol import Facts, Loaded, Stopped, TakePreview
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.interface import LOOPBACK, bind_transports

logger = logging.getLogger(__name__)

BEAT_S = 1.0
AGREE_S = 10.0
"""Maximum wait of a failed rank for the others' outcomes, seconds."""
LINGER_S = 1.0
"""Delay of a failed rank's exit, seconds. In this time the agent notices the rank that failed first."""
FOREVER = timedelta(days=3650)
LOADING = timedelta(minutes=30)


class Rank:
    """State of a rank's process. It is the `Watch` of its own runner."""

    def __init__(self, rank: int, settings: Settings, link: wire.Link, store: str | None) -> None:
        self.rank = rank
        self._store = store
        self._settings = settings
        self._link = link
        self._control: Any = None
        """Process group for commands. It has no timeout, because it may be idle for a long time."""
        self._commands: queue.Queue[tuple[Any, list[bytes]]] = queue.Queue()
        self._cancel = threading.Event()
        self._loaded: Loaded | None = None

    def run(self) -> None:
        """Join the other ranks, load the model, then run commands until `Exit` comes.

        Raises:
            LoadError: the model cannot be loaded.
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
        # Long, because ranks load at different speeds. The server watches the time of a step.
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
        """Receive commands into the queue; a cancellation sets its flag at once. Exit when the server is gone."""
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
        """Broadcast the next command and its attachments from rank 0 to all ranks, and return them."""
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
            message = wire.Failed(what="error", message=summary(error))
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
        if isinstance(command, wire.Sleep):
            return wire.Done(slept=runner.sleep(lambda: False) or 0), []
        if isinstance(command, wire.Wake):
            runner.wake(lambda: None)
        if isinstance(command, wire.Lora):
            (runner.load_lora if command.loaded else runner.unload_lora)(command.name)
        return wire.Done(), []

    @property
    def cancelled(self) -> bool:
        """Rank 0's cancellation flag, which reading broadcasts. Every rank must read it after each step."""
        flag = torch.tensor([int(self._cancel.is_set())])
        dist.broadcast(flag, 0, group=self._control)
        return bool(flag)

    def progress(self, done: int, cached: int) -> None:
        self._say(wire.Progress(done=done, cached=cached))

    def preview(self, done: int, take: TakePreview) -> None:
        pass  # latents stay on the ranks

    def _agree(self, answer: wire.Message) -> None:
        """Compare this rank's outcome with the others'. If they differ, report the failure and exit."""
        kinds = ("stopped", "invalid", "out_of_memory", "error")
        mine = 1 + kinds.index(answer.what) if isinstance(answer, wire.Failed) else 0
        every = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        work = dist.all_gather(every, torch.tensor([mine]), group=self._control, async_op=True)
        try:
            # A failed rank waits only so long: others may be in a step, or blocked for ever in an exchange without it.
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
                # JSON cannot hold argument types; the server derives them from the class.
                "traits": traits.dump_python(variant.traits, mode="json", exclude={"extra_arguments"}),
                "support": support.dump_python(variant.speeds.support, mode="json"),
            }
            for variant in loaded.model.variants
        ],
        loras=[loras.dump_python(lora, mode="json") for lora in loaded.model.loras],
    )


def main(number: int, server: str, token: str) -> None:
    """Run a rank until the server ends it or is gone.

    Args:
        number: the rank.
        server: address of the server, as :func:`wire.connect` takes it.
        token: secret of the group.
    """
    try:
        link = wire.connect(server)
        link.send(wire.Hello(rank=number, pid=os.getpid(), token=token))
        brief = wire.Brief.model_validate(link.receive()[0])
    except (OSError, wire.Closed):
        os._exit(1)  # the server is gone
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
    """Exit after `LINGER_S`. torch's agent names only the first ended rank it sees, which must be the one at fault."""
    time.sleep(LINGER_S)
    os._exit(1)
