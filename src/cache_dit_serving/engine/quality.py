"""Live evidence: the results of shadow runs, shared by the servers of one database, and the speeds that they lower."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cache_dit_serving import __version__
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.engine.background import Background
from cache_dit_serving.engine.shadow_measuring import Measured, ShadowMeasuring
from cache_dit_serving.errors import InvalidRequest, NotReady, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.shadow_runs import Shadow
from cache_dit_serving.jobs.store.database import JobDatabase
from cache_dit_serving.jobs.store.exchanged import Entry
from cache_dit_serving.jobs.webhooks import Webhook, webhook_about
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.measure.evidence.ledger import Ledger, WatchedSpeed
from cache_dit_serving.measure.evidence.lowering import lowered
from cache_dit_serving.measure.evidence.samples import Sample
from cache_dit_serving.media.outputs import Outputs
from cache_dit_serving.pipeline.protocol import Facts
from cache_dit_serving.schemas.answers import timestamp

logger = logging.getLogger(__name__)

EXCHANGE_S = 2.0
"""Seconds between two looks at the evidence of all servers."""
PAGE = 1_000
"""Rows that are read at once."""
MOST_UNWRITTEN = 1_000
"""Results that are kept while the database does not answer; the oldest give way."""
MOST_FILES = 2_000
"""Requests whose kept files are known; the oldest give way."""
SAMPLE, ENVIRONMENT, RESTORED = "sample", "environment", "restored"
"""Kinds of entries: a shadow run, the description of an environment, and the operator's word that a speed is offered
again."""


class Quality:
    """Evidence of this server, and of all servers that share its database. For the event loop, but where it says so."""

    def __init__(self, settings: Settings, worker: PipelineWorker, outputs: Outputs, database: JobDatabase) -> None:
        self._settings = settings
        self._worker = worker
        self._database = database
        self._measuring = ShadowMeasuring(outputs if settings.shadow.keep else None, self._found, worker.model.name)
        self._unwritten: deque[Entry] = deque(maxlen=MOST_UNWRITTEN)
        self._messages: list[Webhook] = []
        """Messages to the operator that are not in the outbox yet."""
        self._read_to = 0
        self._ledger: Ledger | None = None
        self._lowered: dict[str, Speed] = {}
        self.environments: dict[str, dict[str, Any]] = {}
        """Descriptions of environments, by their hash."""
        self.files: dict[str, tuple[str, ...]] = {}
        """Names of the kept files, by request."""
        worker.shadows.compare_with(self._compared)

    @property
    def settings(self) -> ShadowSettings:
        """Bounds of the runs."""
        return self._settings.shadow

    @property
    def took(self) -> float:
        """Share of the time since the model was ready that the runs took."""
        return self._worker.shadows.took

    @property
    def waiting(self) -> int:
        """Outputs that wait for their run."""
        return self._worker.shadows.waiting

    @property
    def on(self) -> bool:
        """True if outputs are compared."""
        return self._settings.shadow.share > 0

    @property
    def lowered(self) -> Mapping[str, Speed]:
        """Speed that requests get in place of each that misses a floor."""
        return self._lowered

    @property
    def ledger(self) -> Ledger | None:
        """Evidence so far; None before the model is loaded."""
        return self._ledger

    async def exchange_until_closing(self, background: Background) -> None:
        """Write what was found here and read what all servers found, until the server ends."""
        while self.on and not background.closing.is_set():
            try:
                await self.exchange()
            except StoreUnavailable:
                pass  # the log has it
            except Exception:
                logger.exception("the evidence of shadow runs is not exchanged")
            await background.pause(EXCHANGE_S)

    async def exchange(self) -> None:
        """Write what was found here, and take all that is new.

        Raises:
            StoreUnavailable: the database does not answer; what was found is written later.
        """
        if self._worker.state != "ready":
            return
        self.begin()
        access = self._database.access
        while self._unwritten:
            entries = list(self._unwritten)
            await access.write(lambda store, entries=entries: store.evidence.add(entries))  # type: ignore[misc]
            for each in entries:
                with contextlib.suppress(ValueError):  # it gave way to newer ones
                    self._unwritten.remove(each)
        is_first = self._read_to == 0  # what came and went before this server is not told again
        while True:
            after = self._read_to
            found = await access.read(lambda store, after=after: store.evidence.after(after, PAGE))  # type: ignore[misc]
            for entry in found:
                try:
                    self._take(entry)
                    if not is_first:
                        self._tell_changes(is_own=entry.server == self._database.server)
                except (TypeError, ValueError, KeyError):
                    # A newer server beside this one may write what this one does not know.
                    logger.warning("a piece of evidence of another version is left out: number %d", entry.number)
                self._read_to = entry.number
            if len(found) < PAGE:
                break
        if is_first:
            self._tell_changes(is_own=False)
        if self._messages:
            messages = list(self._messages)
            await access.write(lambda store: store.outbox.put(messages, time.time()))
            del self._messages[: len(messages)]

    async def restore(self, name: str) -> None:
        """Offer a speed again that live traffic lowered, at every server of the database.

        Raises:
            InvalidRequest: it is not lowered.
            StoreUnavailable: the database does not answer.
        """
        if name not in self._lowered:
            listed = ", ".join(self._lowered) or "none"
            raise InvalidRequest(f"this speed is not lowered; those that are: {listed}", param="speed")
        assert self._ledger is not None
        self._unwritten.append(self._entry(RESTORED, {"speed": name}))
        await self.exchange()

    def close(self) -> None:
        """End the measuring thread."""
        self._measuring.close()

    def begin(self) -> None:
        """Begin the ledger, once the model is loaded.

        Raises:
            NotReady: there is no loaded model.
        """
        loaded = self._worker.loaded()
        described = _environment(loaded.runner.facts)
        if self._ledger is not None and self._ledger.environment == _hash(described):
            return
        # Other weights were loaded, or these are the first: what is known of them is read from the beginning.
        self._read_to, self._lowered = 0, {}
        speeds, floors = loaded.model.speeds, self._settings.speeds
        watched: dict[str, WatchedSpeed] = {
            name: WatchedSpeed(rung.settings.digest(), floors.floors_of(name))
            for name, rung in speeds.rungs.items()
            if rung.settings is not None
        }
        self._ledger = Ledger(_hash(described), watched)
        self.environments[self._ledger.environment] = described
        self._unwritten.append(self._entry(ENVIRONMENT, described))

    def _entry(self, kind: str, body: Mapping[str, Any]) -> Entry:
        assert self._ledger is not None
        return Entry(kind, self._ledger.environment, json.dumps(body), self._database.server)

    def _take(self, entry: Entry) -> None:
        """Take an entry of any server, in the order in which all take it."""
        assert self._ledger is not None
        body = json.loads(entry.body)
        if entry.kind == ENVIRONMENT:
            self.environments[entry.environment] = body
        elif entry.kind == RESTORED and entry.environment == self._ledger.environment:
            self._ledger.restore(body["speed"])
        elif entry.kind == SAMPLE:
            files = tuple(body.pop("files", ()))
            sample = Sample(**body)
            if files:
                self.files[sample.request] = files
                if len(self.files) > MOST_FILES:
                    del self.files[next(iter(self.files))]
            self._ledger.take(sample)

    def _tell_changes(self, *, is_own: bool) -> None:
        """Log, count and send what the entry has changed.

        Args:
            is_own: whether it is this server's. Of all that see it, that one alone sends it to the operator.
        """
        assert self._ledger is not None
        before = self._lowered
        serving = lowered(self._worker.loaded().model.speeds.allowed, self._ledger.statuses())
        self._lowered = {speed: instead for speed, instead in serving.items() if speed != instead}
        for speed in self._lowered.keys() - before.keys():
            floors = [name for name, each in self._ledger.states[speed].floors.items() if each.status == "missed"]
            logger.error(
                "live traffic misses the floor of speed %s (%s): requests for it get %s; GET /quality shows why, "
                "POST /quality/%s offers it again",
                speed,
                ", ".join(floors),
                self._lowered[speed],
                speed,
            )
            if is_own:
                self._send("speed.lowered", {"speed": speed, "instead": self._lowered[speed], "missed": floors})
        for speed in before.keys() - self._lowered.keys():
            logger.warning("speed %s is offered again", speed)
            if is_own:
                self._send("speed.restored", {"speed": speed})
        for speed in self._ledger.watches:
            metrics.SPEED_LOWERED.labels(speed, self._worker.model.name).set(speed in self._lowered)

    def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        if (url := self._settings.shadow.webhook_url) is not None:
            about = {"model": self._worker.loaded().runner.facts.name} | dict(data)
            self._messages.append(
                webhook_about(f"speed {data['speed']}", url, kind, timestamp(time.time()), json.dumps(about))
            )

    def _compared(self, shadow: Shadow) -> None:
        """Have a run measured; on the pipeline's thread."""
        with contextlib.suppress(NotReady):  # the server shuts down
            self._measuring.begin(shadow, _hash(_environment(self._worker.loaded().runner.facts)))

    def _found(self, measured: Measured) -> None:
        """Keep a result until it is written; on the measuring thread."""
        body = asdict(measured.sample) | ({"files": measured.files} if measured.files else {})
        self._unwritten.append(self._entry(SAMPLE, body))


def _environment(facts: Facts) -> dict[str, Any]:
    """Return what decides the outputs beside the request and its cache settings."""
    version = {} if facts.weights_version is None else {"weights_version": facts.weights_version}
    return {
        "model": facts.name,
        **version,
        "weights": facts.weights,
        "device": facts.device,
        "dtype": facts.dtype,
        "attention_backend": facts.attention_backend,
        "offload": facts.offload,
        "parallelism": facts.parallelism,
        "quantized": {each.name: each.type for each in facts.quantized},
        "components": {each.name: f"{each.file} {each.format}" for each in facts.components},
        "versions": {"cache-dit-serving": __version__} | facts.versions,
    }


def _hash(described: Mapping[str, Any]) -> str:
    """Return ten hexadecimal digits that name an environment."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:10]
