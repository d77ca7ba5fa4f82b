"""Assembly of a ready model from the settings: one function that keeps the order of the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CACHE_TYPES, CacheType
from cache_dit_serving.config.footprints import footprint_of
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.logs import claim_loggers
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.media.video_encoders import video_encoder
from cache_dit_serving.pipeline.environment import first_import, library_versions, quiet_libraries
from cache_dit_serving.pipeline.introspect import traits_of
from cache_dit_serving.pipeline.part import Part
from cache_dit_serving.pipeline.protocol import Facts, Loaded, Usable
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.pipeline.sampler_trials import drawing_samplers
from cache_dit_serving.pipeline.warm_up import CacheTypeFails, compile_ahead, short, try_cache, warm_up, working
from cache_dit_serving.planning.loras import LoraTraits
from cache_dit_serving.planning.model import PlannedModel, planned
from cache_dit_serving.planning.traits import PipelineTraits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.cache import PipelineCache
    from cache_dit_serving.pipeline.guidance import SharedGuidance
    from cache_dit_serving.pipeline.lora import LoadedLoras
    from cache_dit_serving.pipeline.samplers import Samplers
    from cache_dit_serving.pipeline.shared_weights import WeightsOfModel

logger = logging.getLogger(__name__)


def assemble(
    settings: Settings,
    progress: Callable[[str], None],
    before: Loaded | None = None,
    *,
    shared: WeightsOfModel | None = None,
) -> Loaded:
    """Load, accelerate, try and warm up the model; report each stage to `progress`.

    A model that was loaded before in this process is neither tried nor warmed up again.

    Args:
        before: the model as it was loaded before. Other files in its place are tried and warmed up.
        shared: weights of other models, of which equal ones are used; None: there are none.

    The order of the steps, with its reasons:

    1. Check that the pipeline can be served, before it is changed.
    2. Fuse LoRAs, into weights that are not quantised yet.
    3. Quantise, one component on the device at a time: the unquantised model need not fit there.
    4. Load the other LoRAs, which lie beside the weights.
       Then find the weights that other models have on the device already.
    5. Set up offload or the exchange between ranks. Both wrap `forward` of components and layers, LoRAs among them.
    6. Set the attention backend.
    7. Install the cache, which patches each transformer's `forward` as it is by then. No layer is replaced after it: a
       call's LoRAs are switched inside the layers.
    8. Try each cache type, since some families fail only in their forward pass.
    9. Compile the blocks. Before the trials it would compile graphs that no request needs.
    10. Warm up, on the pipeline that requests will use.
    11. Try each offered scheduler on each task that works.

    Raises:
        LoadError: a step failed; the message has no paths or library texts.
    """
    try:
        return _assembled(settings, progress, before, shared)
    except BaseException:
        if shared is not None:
            shared.abandon()
        raise


def _assembled(
    settings: Settings, progress: Callable[[str], None], before: Loaded | None, shared: WeightsOfModel | None
) -> Loaded:
    progress("importing torch, diffusers and cache-dit")
    quiet_libraries()
    # Imported here because reading service.py (bentoml build, the supervisor) must not need torch.
    with first_import("cache_dit"):
        from cache_dit_serving.pipeline import cache, compiling

    claim_loggers()  # again, for the libraries imported since
    compiling.prepare(settings.compile)
    assert tuple(cache.CONFIGS) == CACHE_TYPES
    installed = _installed(settings, progress, shared)
    runner = installed.runner
    if before is not None and _is_the_same(runner.facts, installed.loras.traits(), before):
        for cache_type, reason in before.refused.items():
            installed.refuse(cache_type, reason)
        _compile(settings, installed, before.model, progress)
        return replace(before, runner=runner, warm_up=())
    model, refused = _tried(settings, installed, progress)
    if (unfulfilled := model.speeds.unfulfilled) is not None:
        if settings.server.require_cache:
            raise LoadError(f"{unfulfilled}, and server.require_cache is set")
        logger.warning("serving without a cache: %s", unfulfilled)
    _compile(settings, installed, model, progress)
    warmed_up = warm_up(runner, model, settings, progress)
    for _, record in warmed_up:
        model = record.corrected(model)
    if settings.server.warm_up:
        model = working(runner, model, progress)
    return Loaded(runner, drawing_samplers(runner, model, progress), warmed_up, refused)


class _Installed(NamedTuple):
    """A pipeline and its siblings with their caches, and the runner of them."""

    runner: PipelineRunner
    pipes: list[DiffusionPipeline]
    """The pipeline itself, then the siblings, which share its networks."""
    caches: list[PipelineCache]
    """Cache of each pipeline."""
    samplers: list[Samplers]
    """Schedulers of each pipeline."""
    traits: PipelineTraits
    loras: LoadedLoras

    def refuse(self, cache_type: CacheType, reason: str) -> None:
        """Remove a cache type that failed on trial. The siblings share the transformer, and its forward pass."""
        for cache in self.caches:
            cache.refuse(cache_type, reason)


def _installed(settings: Settings, progress: Callable[[str], None], shared: WeightsOfModel | None) -> _Installed:
    """Load and accelerate the model, and install the cache."""
    import torch

    from cache_dit_serving.pipeline import cache, compiling, load
    from cache_dit_serving.pipeline.previews import Previewer
    from cache_dit_serving.pipeline.profiling import Profiler
    from cache_dit_serving.pipeline.prompt_cache import PromptCache
    from cache_dit_serving.pipeline.samplers import Samplers
    from cache_dit_serving.pipeline.signatures import keep_signatures

    pipe, traits, loras, guidance, facts = _accelerated(settings, progress, shared)
    keep_signatures(pipe)
    progress("installing the cache")
    pipes = [pipe, *load.siblings_of(pipe, traits.tasks)]
    caches = [cache.PipelineCache(each) for each in pipes]
    samplers = [Samplers(each, settings.model.schedulers) for each in pipes]
    parts = [Part.of(*part) for part in zip(pipes, caches, samplers, strict=True)]
    prompts = PromptCache(settings.limits.prompt_cache_bytes, loras.on_encoders)
    for part in parts:
        prompts.install(part.pipe)
    previewer = None
    if settings.previews.allow and settings.parallelism is None:
        previewer = Previewer(pipe, settings.previews)
    runner = PipelineRunner(
        parts,
        facts,
        loras,
        prompts,
        Profiler(settings.profiling, torch.device(facts.device)),
        previewer=previewer,
        compiled_graphs=compiling.compiled_graphs if settings.compile else None,
        footprint=footprint_of(settings.model.path),
        reload_folder=settings.model.reload_folder,
        shared=shared,
        processes=settings.parallelism.ranks_per_node if settings.parallelism else 1,
        guidance=guidance,
    )
    return _Installed(runner, pipes, caches, samplers, traits, loras)


def _tried(
    settings: Settings, installed: _Installed, progress: Callable[[str], None]
) -> tuple[PlannedModel, dict[CacheType, str]]:
    """Try each cache type; return the model as requests are planned for it, and the reasons for those that failed."""
    pipeline_cache, *others = installed.caches
    known = installed.loras.traits()
    traits = replace(installed.traits, samplers=installed.samplers[0].traits)
    model = planned(settings, traits, pipeline_cache.support, known)
    refused: dict[CacheType, str] = {}
    for cache_type in CACHE_TYPES:
        if cache_type not in pipeline_cache.support.refusals:
            progress(f"trying the cache ({cache_type}) in a few steps")
            try:
                model = try_cache(installed.runner, model, cache_type).corrected(model)
            except CacheTypeFails as failure:
                refused[cache_type] = str(failure)
                installed.refuse(cache_type, refused[cache_type])
            installed.runner.flush()
    guided_passes = model.traits.guidance.guided_passes
    siblings = tuple(
        planned(
            settings,
            replace(traits_of(sibling, guided_passes=guided_passes), samplers=its_samplers.traits),
            its_cache.support,
            known,
        )
        for sibling, its_cache, its_samplers in zip(installed.pipes[1:], others, installed.samplers[1:], strict=True)
    )
    own = planned(settings, model.traits, pipeline_cache.support, known)
    return replace(own, siblings=siblings), refused


def _is_the_same(facts: Facts, loras: tuple[LoraTraits, ...], before: Loaded) -> bool:
    """Return whether what was loaded is the model of before, by its facts and LoRAs."""
    facts, earlier = _own(facts), replace(_own(before.runner.facts), weights_version=None)
    return facts == earlier and loras == before.model.loras


def _own(facts: Facts) -> Facts:
    """Return the facts without what other models have to do with them."""
    return replace(facts, components=tuple(each._replace(weights=None) for each in facts.components))


def _compile(settings: Settings, installed: _Installed, model: PlannedModel, progress: Callable[[str], None]) -> None:
    """Compile the blocks for the sizes that the settings name, and for others when they first run."""
    from cache_dit_serving.pipeline import compiling

    if settings.compile is None:
        return
    overlap = settings.parallelism is None or settings.parallelism.compute_comm_overlap
    block_lists = installed.caches[0].support.block_lists
    compiling.compile_blocks(installed.pipes[0], block_lists, settings.compile, overlap=overlap)
    installed.loras.keep_scales_as_tensors(installed.runner.facts.device)
    compile_ahead(installed.runner, model, settings, progress)


class _Accelerated(NamedTuple):
    """A pipeline on its device, quantised and with its LoRAs, before the cache."""

    pipe: DiffusionPipeline
    traits: PipelineTraits
    loras: LoadedLoras
    guidance: SharedGuidance | None
    facts: Facts


def _accelerated(settings: Settings, progress: Callable[[str], None], shared: WeightsOfModel | None) -> _Accelerated:
    from cache_dit_serving.pipeline import (
        attention,
        cache,
        load,
        lora,
        parallel,
        placing,
        preflight,
        quantize,
        svdquant,
    )
    from cache_dit_serving.pipeline.loaded_components import loaded_components

    device, generator_device = preflight.devices(settings)
    located = load.locate(settings.model)
    svdquant.check(located.sources, device, settings.model.dtype)
    pipe = load.load_pipeline(settings, progress, located)
    configured = settings.cache.enable_separate_cfg if settings.cache else None
    guided_passes = cache.guided_passes_of(pipe) if configured is None else 1 + configured
    traits = traits_of(pipe, guided_passes=guided_passes)
    load.check_servable(traits, settings.defaults)
    if traits.makes is MediaKind.VIDEO:
        video_encoder(settings.outputs.video_encoder)
    loras = lora.LoadedLoras.of(pipe, settings)
    loras.load_those(fused=True, progress=progress)
    quantized = quantize.quantize(pipe, settings.quantize, device, progress)
    loras.load_those(fused=False, progress=progress)
    placing.place(pipe, settings.model, device, progress, shared)
    guidance = None
    if settings.parallelism is not None:
        progress(f"spreading it over {settings.parallelism.world_size} ranks, with one output before and one after")
        uncached = CacheSupport({}, dict.fromkeys(CACHE_TYPES, "not yet"))
        call = short(planned(settings, traits, uncached, ()), guided=settings.parallelism.guidance is not None)
        guidance = parallel.enable(pipe, settings.parallelism, call)
    backend = settings.attention_backend or attention.NATIVE
    attention.set_backend(pipe, backend)
    facts = Facts(
        name=load.public_name(settings.model.path),
        weights=settings.model.weights,
        variant=located.variant,
        dtype=settings.model.dtype,
        device=str(device),
        generator_device=str(generator_device),
        attention_backend=backend,
        versions=library_versions(),
        parallelism=settings.parallelism.described() if settings.parallelism else None,
        offload=settings.model.offload,
        quantized=quantized,
        components=loaded_components(pipe, located.sources, load.public_name, shared.names if shared else {}),
        usable=Usable(tuple(attention.usable_backends(device)), tuple(quantize.usable_types(device))),
    )
    return _Accelerated(pipe, traits, loras, guidance, facts)
