"""Preparation of requests for the queue: resolve the task, fetch the inputs, plan the calls, resize the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.config.settings import OutputSettings, Settings
from cache_dit_serving.engine.deadline import plan_within_deadline
from cache_dit_serving.engine.inputs import inputs_of, with_fitting_images
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.lowering import lowering_of
from cache_dit_serving.engine.shadowing import Shadowed, Shadowing
from cache_dit_serving.errors import Forbidden, InvalidRequest
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.media.c2pa_signer import C2paSigner
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.delivery import Delivery
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.media.kinds import OutputSpec, Sign
from cache_dit_serving.media.outputs import Outputs
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved, resolve
from cache_dit_serving.schemas.answers import DeadlineReport


@dataclass(frozen=True)
class Prepared:
    """A request that can queue."""

    intake: Intake
    generation: Generation
    delivery: Delivery
    deadline: DeadlineReport | None = None
    """The promise for `deadline_s`; None where the request has none."""


class Preparation:
    """Steps of a request before the queue, with the resources that they share."""

    def __init__(
        self,
        settings: Settings,
        worker: PipelineWorker,
        decoding: DecodingPool,
        outputs: Outputs,
        lowered: Callable[[], Mapping[str, Speed]],
    ) -> None:
        """
        Args:
            lowered: returns the speed that requests get, by the speed that live traffic has lowered.

        Raises:
            ConfigError: `outputs.c2pa` names a certificate that cannot sign.
        """
        self._sign = C2paSigner(settings.outputs.c2pa).sign if settings.outputs.c2pa is not None else None
        self._settings = settings
        self._shadowing = Shadowing(settings.shadow.share)
        self._worker = worker
        self._decoding = decoding
        self._outputs = outputs
        self._lowered = lowered

    def resolve(self, intake: Intake) -> Resolved:
        """Find the task of a request.

        Raises:
            Forbidden: the caller's key lacks a scope that the request needs.
            InvalidRequest: no task of the loaded model takes its inputs.
            NotReady: there is no loaded model.
        """
        if intake.request.profile and not intake.caller.admin:
            raise Forbidden("this key may not ask for a profile: it lacks the scope admin", param="profile")
        model = replace(self._worker.loaded().model, tolerant=intake.lenient)
        return resolve(intake.request, model)

    async def generation(self, intake: Intake, resolved: Resolved) -> Prepared:
        """Prepare a generation, within its deadline where it has one.

        Raises:
            ServingError: InvalidRequest, CacheNotEngaged, QueueFull, ClientGone, DeadlineExceeded or InternalError.
        """
        inputs = await self._inputs(intake, resolved)
        waits = resolved.request.deadline_s is not None
        queue_s = self._worker.wait_s(self._priority(intake)) if waits else 0.0
        rates, missed = self._worker.rates, self._lowered()
        lowering = lowering_of(resolved, missed)
        served = lowering.resolved if lowering else resolved
        planned, deadline = plan_within_deadline(served, rates, queue_s, inputs, without=missed)
        if lowering is not None:
            planned = lowering.warned(planned)
        shadow = self._shadowing.chosen(resolved, inputs, planned, lowered=lowering is not None)
        return await self._prepared(intake, planned, deadline, shadow)

    async def comparison(self, intake: Intake, resolved: Resolved) -> Prepared:
        """Prepare the same output with the cache and without, as one generation.

        Raises:
            ServingError: as :meth:`generation`; InvalidRequest also where there is nothing to compare.
        """
        request = resolved.request
        if request.deadline_s is not None:
            raise InvalidRequest("deadline_s is for /generate: a comparison runs what it is asked", param="deadline_s")
        planned = plan(resolved, await self._inputs(intake, resolved))
        if planned.cache.settings is None and request.cache is not None and not request.cache.enabled:
            raise InvalidRequest("a comparison needs the cache; leave cache.enabled out", param="cache.enabled")
        return await self._prepared(intake, planned.compared())

    async def _inputs(self, intake: Intake, resolved: Resolved) -> Inputs:
        """Fetch and decode the images and videos of a request."""
        if not any(getattr(resolved.request, field) for field in FIELDS_OF_INPUTS.values()):
            return NO_INPUTS
        most = resolved.model.limits.max_num_frames
        frames = min(resolved.request.num_frames or most, most)
        return await intake.while_connected(
            inputs_of(
                resolved.request,
                list(intake.uploads),
                self._settings.inputs,
                frames,
                self._decoding,
                mask_kind=intake.mask_kind,
            )
        )

    async def _prepared(
        self,
        intake: Intake,
        planned: Planned,
        deadline: DeadlineReport | None = None,
        shadow: Shadowed | None = None,
    ) -> Prepared:
        planned = await self._fitted(intake, planned)
        planned = replace(planned, output=_as_configured(planned.output, self._settings.outputs, self._sign))
        if name := self._worker.model.name:
            planned = replace(planned, recorded={**planned.recorded, "model": name})
        warnings = tuple(map(intake.sent_as.warning, planned.warnings))
        planned = replace(planned, warnings=warnings)
        if shadow is not None:
            shadow = await shadow.each(lambda each: self._fitted(intake, each))
            planned = shadow.with_calls(planned)
        generation = Generation(intake.id, planned, self._priority(intake), intake.caller.name)
        checked = self._worker.safety.check_prompt(intake.id, intake.caller.name, planned)
        await intake.while_connected(checked)
        for warning in intake.warnings:
            generation.warn(warning)
        return Prepared(intake, generation, self._delivery(intake), deadline)

    async def _fitted(self, intake: Intake, planned: Planned) -> Planned:
        """Return a request with its pictures resized, and its caller's name in its calls."""
        if planned.to_resize:
            planned = await intake.while_connected(with_fitting_images(planned, self._decoding))
        return planned.for_caller(intake.caller.name)

    def _priority(self, intake: Intake) -> int:
        return min(intake.request.priority or 0, self._settings.limits.max_priority)

    def _delivery(self, intake: Intake) -> Delivery:
        request = intake.request
        base_url = (self._settings.outputs.public_url or intake.base_url).rstrip("/")
        delivery = Delivery(self._outputs, request.output_format or "base64", request.output_dir, base_url)
        delivery.check()
        return delivery


def _as_configured(output: OutputSpec, settings: OutputSettings, sign: Sign | None) -> OutputSpec:
    """Return how files are written, with the operator's settings in it."""
    return replace(
        output,
        source=output.source if settings.provenance else None,
        sign=sign,
        video_encoder=settings.video_encoder,
    )
