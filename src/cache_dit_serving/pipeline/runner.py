"""Runner of one pipeline on one device, in this process: draws a call image by image.

A runner belongs to one thread (`jobs.worker`): neither diffusers' pipelines nor cache-dit's contexts are re-entrant.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cache_dit_serving.errors import InternalError, InvalidRequest, OutOfMemory
from cache_dit_serving.pipeline.drawing import Drawing
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.prompts import listening
from cache_dit_serving.pipeline.protocol import Facts, Freed, Reloaded, Sampled, Stopped, Watch, WeightsChoice
from cache_dit_serving.pipeline.shared_weights import SharedWeights
from cache_dit_serving.planning.call import ImageCall

if TYPE_CHECKING:
    from pathlib import Path

    from cache_dit_serving.config.footprints import Footprint
    from cache_dit_serving.pipeline.cache import PipelineCache
    from cache_dit_serving.pipeline.guidance import SharedGuidance
    from cache_dit_serving.pipeline.lora import LoadedLoras
    from cache_dit_serving.pipeline.output import Arriving
    from cache_dit_serving.pipeline.part import Part
    from cache_dit_serving.pipeline.previews import Previewer
    from cache_dit_serving.pipeline.profiling import Profiler
    from cache_dit_serving.pipeline.prompt_cache import PromptCache
    from cache_dit_serving.pipeline.shared_weights import WeightsOfModel
    from cache_dit_serving.planning.loras import LoraContents

logger = logging.getLogger(__name__)

TOGETHER = (
    "cfg_diff_compute_separate: false does not work where guidance's passes have GPUs of their own "
    "(parallelism.guidance): each decides by itself; leave it out"
)


class PipelineRunner:
    """Runner of a diffusers pipeline in this process, with or without cache-dit, and of its siblings."""

    def __init__(
        self,
        parts: Sequence[Part],
        facts: Facts,
        loras: LoadedLoras,
        prompts: PromptCache,
        profiler: Profiler,
        *,
        previewer: Previewer | None = None,
        compiled_graphs: Callable[[], int] | None = None,
        footprint: Footprint | None = None,
        processes: int = 1,
        guidance: SharedGuidance | None = None,
        reload_folder: Path | None = None,
        shared: WeightsOfModel | None = None,
    ) -> None:
        """
        Args:
            parts: the loaded pipeline first.
            loras: LoRAs on all parts.
            prompts: prompt cache that is installed on all parts.
            profiler: writer of the calls' traces.
            previewer: maker of previews from the parts' latents; None: no previews.
            compiled_graphs: function that returns the number of graphs compiled in this process; None: no compilation.
            footprint: memory that the model needs, for the advice where it runs out.
            processes: number of ranks on this machine, which share its memory.
            guidance: sharing of guidance's forward passes with other ranks; None: this process makes all of them.
            reload_folder: folder below which weights lie that may take the place of the loaded ones; None: none may.
            shared: weights that other models may use too; None: none do.
        """
        import torch

        from cache_dit_serving.pipeline.memory import MemoryUse
        from cache_dit_serving.pipeline.sleeping import Sleeping

        self._loras = loras
        self._prompts = prompts
        self._profiler = profiler
        self._previewer = previewer
        self._compiled_graphs = compiled_graphs or (lambda: 0)
        self._footprint = footprint
        self._guidance = guidance
        self.facts = facts
        self._parts = {part.name: part for part in parts}
        self._part = parts[0]
        """Part that ran last; only its cache can be on."""
        self._device = torch.device(facts.device)
        self._memory_use = MemoryUse(self._device)
        self._reload_folder = reload_folder
        self._shared = shared or SharedWeights().of("")
        self._sleeping = Sleeping(parts, self._device, self._shared, processes)
        self._held_bytes = 0

    lost: str | None = None
    ended = False

    def close(self) -> None:
        pass

    @property
    def _cache(self) -> PipelineCache:
        return self._part.cache

    def sample(self, call: ImageCall, watch: Watch) -> Sampled:
        """Draw the output of a call. It depends on the call and its seed alone, not on earlier images.

        If the pipeline makes another number of forward passes a step than the call says, the cache has compared the
        wrong passes: the image is wrong, or could not be drawn. It is drawn again with the counted passes, which the
        record then has.

        Raises:
            Stopped: the watch was cancelled; raised between two steps, or two blocks before or after them.
            OutOfMemory: the device's memory ran out. The cache's activations are freed.
            InvalidRequest: the cache's settings do not go with shared guidance.
            InternalError: the cache cannot be paired with the pipeline's forward passes.
            Exception: any error of the pipeline; the next image is not affected.
        """
        drawing = self._drawing(call, watch, self._guidance)
        try:
            image = self._drawn_alike(drawing)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:
            # The passes of a step may differ in their shapes, which nothing that compares them takes.
            alone = self._guidance is None and call.cache.settings is not None
            if not alone or drawing.counted_passes <= call.passes:
                raise
            logger.info("failed with passes that were paired wrongly: %s", summary(error))
        else:
            if image.record.cache.executed_steps == image.record.cache.steps:
                return image
        logger.warning("%d forward passes in %d steps: drawn again", drawing.forward_passes, call.num_inference_steps)
        image = self._drawn(self._drawing(replace(call, passes=drawing.counted_passes), watch, self._guidance))
        report = image.record.cache
        if report.executed_steps != report.steps:
            raise InternalError("The cache cannot be paired with this model's forward passes; turn it off.")
        return replace(image, record=replace(image.record, cache=report.model_copy(update={"redrawn": 1})))

    def _drawn_alike(self, drawing: Drawing) -> Sampled:
        """Run a drawing; again with all its forward passes in this process, where its steps differ in them.

        Raises:
            Exception: as :meth:`sample`.
        """
        if self._guidance is None:
            return self._drawn(drawing)
        from cache_dit_serving.pipeline.guidance import PassesVary

        try:
            return self._drawn(drawing)
        except PassesVary as vary:
            logger.warning("guidance is not shared by the ranks in this output: %s", vary)
        return self._drawn(self._drawing(drawing.call, drawing.watch, None))

    def _drawing(self, call: ImageCall, watch: Watch, guidance: SharedGuidance | None) -> Drawing:
        """Prepare the pipeline, LoRAs and cache of a call; return its drawing, which has not run."""
        trace = self._profiler.trace(call.profile)
        part = self._parts[call.pipeline_class]
        if part is not self._part:
            # The parts share the transformer, and only one patch may be on it.
            self._cache.prepare(None, 0, passes=1)
            self._part = part
        self._loras.use(call.loras)
        settings = call.cache.settings
        if guidance is not None and settings is not None and not settings.cfg_diff_compute_separate:
            raise InvalidRequest(TOGETHER, param="cache.cfg_diff_compute_separate")
        transition = part.cache.prepare(
            settings, call.num_inference_steps, passes=call.passes, own_passes=None if guidance is None else 1
        )
        return Drawing(
            call,
            part,
            watch,
            device=self._device,
            trace=trace,
            transition=transition,
            # Ranks ask each other whether to stop, which all of them must do equally often.
            stops_around=self.facts.parallelism is None,
            guidance=guidance,
        )

    def _drawn(self, drawing: Drawing) -> Sampled:
        """Run a drawing; return its output.

        Raises:
            Exception: as :meth:`sample`.
        """
        from cache_dit_serving.pipeline.memory import is_out_of_memory, memory_advice
        from cache_dit_serving.pipeline.placing import release

        call, part = drawing.call, drawing.part
        graphs = self._compiled_graphs()
        self._memory_use.begin()
        try:
            with drawing.running():
                output: Arriving | None = self._run(drawing)
        except BaseException as error:
            release(part.pipe)
            if not is_out_of_memory(error):
                raise
            logger.exception("out of memory at %d pixels", call.pixels)
            output = None
        if output is None:
            # Outside the handler: the exception keeps the tensors of every frame that it passed.
            self.flush()
            if advice := memory_advice(self._footprint, self._device):
                logger.error("settings with which this model fits into the memory: %s", advice)
            width, height = (call.arguments.get(side) for side in ("width", "height"))
            would_fit = self._memory_use.would_fit(width, height, call.pixels) if width and height else None
            raise OutOfMemory(would_fit)
        self._held_bytes = part.cache.held_bytes()
        record = drawing.record(
            output.shape,
            compiled_graphs=self._compiled_graphs() - graphs,
            peak_memory_bytes=self._memory_use.end(call.pixels),
        )
        return Sampled(output.arrived, replace(record, weights_version=self.facts.weights_version))

    def _run(self, drawing: Drawing) -> Arriving:
        """Call the pipeline of a drawing; return its output, which may still be on its way from the device."""
        import torch

        from cache_dit_serving.pipeline.seeding import seed_generators

        call, part = drawing.call, drawing.part
        pipe = part.pipe
        show = None if self._previewer is None else self._previewer.showing(pipe, call, drawing.watch)
        # The pipeline's own no_grad stays inside. On the embedded model inference mode saves 5 % of an image's time.
        # It is not used with offload: weights that are moved in inference mode cannot get another LoRA afterwards.
        guard = torch.inference_mode if self.facts.offload is None else torch.no_grad
        with (
            guard(),
            # Some families draw noise, or sample an image's latents, without the generator of the call.
            torch.random.fork_rng([self._device] if self._device.type == "cuda" else []),
            part.samplers.used(call.sampler),
            drawing.passes_shared(),
            drawing.steps_reported(show) as callback,
            listening(drawing.part.tokenizers) as heard,
            self._prompts.used(heard, call.caller) as use,
        ):
            seed_generators(self._device, call.seed)
            output = pipe(
                **call.arguments,
                **callback,
                generator=torch.Generator(self.facts.generator_device).manual_seed(call.seed),
                output_type=part.output_type(call),
            )
            arriving = part.arriving(output, call)
        drawing.encoded(heard, use)
        return arriving

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return the reason that a pipeline class has no previews; None if it has, or may have."""
        if self._previewer is None:
            return "there are no previews on this server"
        return self._previewer.why_none(pipeline_class)

    def flush(self) -> Freed:
        """Free the activations of the last generation and the prompt embeddings; return their bytes."""
        freed = Freed(self._cache.flush(), self._prompts.flush())
        self._held_bytes = 0
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        return freed

    def memory(self) -> dict[str, int]:
        """Return the bytes of this process and the device, of the last image's cached activations, and of the prompt
        embeddings."""
        from cache_dit_serving.pipeline.memory import held_bytes

        held = {"cached_activation_bytes": self._held_bytes, "prompt_cache_bytes": self._prompts.held_bytes}
        if copied := self._sleeping.copied_bytes:
            held["sleeping_weight_bytes"] = copied
        return held_bytes(self._device) | held

    def loras(self) -> Mapping[str, LoraContents]:
        """Return the LoRAs that are loaded beside the weights, by name."""
        return self._loras.loaded

    def load_lora(self, name: str) -> None:
        """Load a LoRA of the folder, if it is not loaded."""
        self._loras.ensure([name])

    def unload_lora(self, name: str) -> None:
        """Free a LoRA of the folder, if it is loaded."""
        self._loras.unload(name)

    def sleep(self, stop: Callable[[], bool]) -> int | None:
        """Free all that :meth:`flush` does, and move the weights to host memory; return the freed bytes of the device.

        None if `stop` undid it.
        """
        return self._sleeping.sleep(self.flush, stop)

    def will_wake(self) -> None:
        """Have shared weights stay on the device."""
        self._shared.claim()

    def wake(self, sign: Callable[[], None]) -> None:
        """Put the weights back on the device."""
        self._sleeping.wake(sign)

    def reload(self, choice: WeightsChoice, sign: Callable[[], None]) -> Reloaded:
        """Put other weights of the same shapes in the place of the model's; what was made by the old ones is freed."""
        from cache_dit_serving.pipeline.reloading import reload

        if self._reload_folder is None:
            raise InvalidRequest("this server opens no folder of weights (model.reload_folder)", param="folder")
        if self.facts.offload not in (None, "model"):
            raise InvalidRequest(f"model.offload {self.facts.offload} keeps the weights elsewhere", param="folder")
        pipe = next(iter(self._parts.values())).pipe
        reloaded = reload(pipe, self._reload_folder, choice, sign, fused=self._loras.fused, part=self._shared.part)
        self.flush()
        if self._previewer is not None:
            self._previewer.forget()
        names = self._shared.names
        components = tuple(each._replace(weights=names.get(each.name)) for each in self.facts.components)
        self.facts = replace(self.facts, weights_version=reloaded.version, components=components)
        return reloaded

    def drop(self) -> int:
        """Free all memory of the model; return its bytes."""
        return self._sleeping.drop(self.flush)
