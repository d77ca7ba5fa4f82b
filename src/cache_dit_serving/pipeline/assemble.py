"""Assembly of a ready model from the settings: one function that keeps the order of the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CACHE_TYPES
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
from cache_dit_serving.planning.model import planned
from cache_dit_serving.planning.traits import PipelineTraits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.guidance import SharedGuidance
    from cache_dit_serving.pipeline.lora import LoadedLoras

logger = logging.getLogger(__name__)


def assemble(settings: Settings, progress: Callable[[str], None]) -> Loaded:
    """Load, accelerate, try and warm up the model; report each stage to `progress`.

    The order of the steps, with its reasons:

    1. Check that the pipeline can be served, before it is changed.
    2. Fuse LoRAs, into weights that are not quantised yet.
    3. Quantise, one component on the device at a time: the unquantised model need not fit there.
    4. Load the other LoRAs, which lie beside the weights.
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
    progress("importing torch, diffusers and cache-dit")
    quiet_libraries()
    # Imported here because reading service.py (bentoml build, the supervisor) must not need torch.
    with first_import("cache_dit"):
        import torch

        from cache_dit_serving.pipeline import cache, compiling, load
        from cache_dit_serving.pipeline.previews import Previewer
        from cache_dit_serving.pipeline.profiling import Profiler
        from cache_dit_serving.pipeline.prompt_cache import PromptCache
        from cache_dit_serving.pipeline.samplers import Samplers

    claim_loggers()  # again, for the libraries imported since
    compiling.prepare(settings.compile)
    pipe, traits, loras, guidance, facts = _accelerated(settings, progress)
    progress("installing the cache")
    pipes = [pipe, *load.siblings_of(pipe, traits.tasks)]
    pipeline_cache, *_ = caches = [cache.PipelineCache(each) for each in pipes]
    samplers = [Samplers(each, settings.model.schedulers) for each in pipes]
    parts = [Part.of(*part) for part in zip(pipes, caches, samplers, strict=True)]
    compiled_graphs = compiling.compiled_graphs if settings.compile else None
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
        compiled_graphs=compiled_graphs,
        footprint=footprint_of(settings.model.path),
        reload_folder=settings.model.reload_folder,
        processes=settings.parallelism.ranks_per_node if settings.parallelism else 1,
        guidance=guidance,
    )
    known = loras.traits()
    model = planned(settings, replace(traits, samplers=samplers[0].traits), pipeline_cache.support, known)
    for cache_type in cache.CONFIGS:
        if cache_type not in pipeline_cache.support.refusals:
            progress(f"trying the cache ({cache_type}) in a few steps")
            try:
                model = try_cache(runner, model, cache_type).corrected(model)
            except CacheTypeFails as failure:
                for each in caches:  # the siblings share the transformer, and its forward pass
                    each.refuse(cache_type, str(failure))
            runner.flush()
    guided_passes = model.traits.guidance.guided_passes
    model = replace(
        planned(settings, model.traits, pipeline_cache.support, known),
        siblings=tuple(
            planned(
                settings,
                replace(traits_of(sibling, guided_passes=guided_passes), samplers=its_samplers.traits),
                its_cache.support,
                known,
            )
            for sibling, its_cache, its_samplers in zip(pipes[1:], caches[1:], samplers[1:], strict=True)
        ),
    )
    if (unfulfilled := model.speeds.unfulfilled) is not None:
        if settings.server.require_cache:
            raise LoadError(f"{unfulfilled}, and server.require_cache is set")
        logger.warning("serving without a cache: %s", unfulfilled)
    if settings.compile is not None:
        overlap = settings.parallelism is None or settings.parallelism.compute_comm_overlap
        compiling.compile_blocks(pipe, pipeline_cache.support.block_lists, settings.compile, overlap=overlap)
        loras.keep_scales_as_tensors(facts.device)
        compile_ahead(runner, model, settings, progress)
    warmed_up = warm_up(runner, model, settings, progress)
    for _, record in warmed_up:
        model = record.corrected(model)
    if settings.server.warm_up:
        model = working(runner, model, progress)
    return Loaded(runner, drawing_samplers(runner, model, progress), warmed_up)


class _Accelerated(NamedTuple):
    """A pipeline on its device, quantised and with its LoRAs, before the cache."""

    pipe: DiffusionPipeline
    traits: PipelineTraits
    loras: LoadedLoras
    guidance: SharedGuidance | None
    facts: Facts


def _accelerated(settings: Settings, progress: Callable[[str], None]) -> _Accelerated:
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
    placing.place(pipe, settings.model, device, progress)
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
        components=loaded_components(pipe, located.sources, load.public_name),
        usable=Usable(tuple(attention.usable_backends(device)), tuple(quantize.usable_types(device))),
    )
    return _Accelerated(pipe, traits, loras, guidance, facts)
