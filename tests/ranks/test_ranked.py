"""A model on two ranks: the pictures of one process, all that requests can do, and what becomes of lost ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cache_dit_serving.config.acceleration import ParallelismSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.schedulers import OfferedScheduler
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.pipeline.protocol import Loaded, Stopped
from cache_dit_serving.ranks import agent, group
from cache_dit_serving.ranks.ranked import RankedRunner
from tests.support.conformance import settings_of
from tests.support.families import save_family
from tests.support.images import apple
from tests.support.in_process import EMBEDDED, load
from tests.support.loras import with_loras
from tests.support.processes import gone
from tests.support.ranks import CLOSE, REUSING, Cancelling, Server, draw, drawing, pids, ranks, running, spread
from tests.support.shadows import Compared, check_measured_as_compared
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("default")  # of torch's elastic agent outside of the main thread

OFFERING = with_loras(
    EMBEDDED.model_copy(
        update={"model": EMBEDDED.model.model_copy(update={"schedulers": {"unipc": OfferedScheduler()}})}
    ),
    LoraSettings(name="mono", path="embedded/monochrome", scale=0.0),
)
"""A LoRA and a scheduler to choose, which each start tries on all ranks."""


@pytest.fixture(scope="module")
def one() -> Loaded:
    return load(OFFERING)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two ranks that draw up to 4,096 px; each test leaves them ready. At the end no rank is left."""
    limits = OFFERING.limits.model_copy(update={"sizes": None, "max_side": 4096, "max_pixel_steps": 10**12})
    with drawing(spread(OFFERING.model_copy(update={"limits": limits}), step_timeout_s=30)) as running:
        yield running


@pytest.fixture
def two(server: Server) -> Loaded:
    """Its ranks, which rest while no test asks the worker for anything."""
    return server.ready()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"speed": "lossless"},
        {"speed": "fast", "num_inference_steps": 12},
        {"cache": {"cache_type": "DBPrune", "residual_diff_threshold": 0.1}},
        {"cache": {"Fn_compute_blocks": 2, "enable_taylorseer": True, "taylorseer_order": 2}},
        {"width": 80, "height": 96},
        {"true_cfg_scale": 2.0, "negative_prompt": "blue"},  # two forward passes a step
        {"loras": [{"name": "mono", "scale": 0.6}]},
        {"scheduler": "unipc"},
    ],
    ids=str,
)
def test_two_ranks_draw_as_one_process(fields: dict[str, Any], one: Loaded, two: Loaded) -> None:
    drawn, expected = draw(two, **fields), draw(one, **fields)
    assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
    assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
    assert [each.cached_steps for each in drawn.record.stats] == [each.cached_steps for each in expected.record.stats]
    assert np.array_equal(draw(two, **fields).media.array, drawn.media.array)


def test_a_sibling_draws_from_a_picture(one: Loaded, two: Loaded) -> None:
    begin = Inputs(images=(InputImage(apple(96, 96), ""),))
    fields: dict[str, Any] = {"image_urls": ["a file"], "strength": 0.5, "num_inference_steps": 20}
    drawn, expected = (draw(loaded, inputs=begin, **fields) for loaded in (two, one))
    assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)


def test_two_ranks_draw_an_output_again_without_the_cache_and_it_is_measured(server: Server, two: Loaded) -> None:
    check_measured_as_compared(Compared(server.worker), **REUSING)


def test_a_size_that_the_ranks_cannot_share_is_refused_and_the_next_picture_is_as_before(two: Loaded) -> None:
    before = draw(two).media.array
    with pytest.raises(InvalidRequest, match="the ranks cannot share evenly; choose another size") as refused:
        draw(two, width=112, height=112)
    assert refused.value.param == "width"
    assert np.array_equal(draw(two).media.array, before)


def test_a_cancellation_stops_all_ranks_within_two_steps(two: Loaded) -> None:
    watch = Cancelling()
    before = draw(two).media.array
    with pytest.raises(Stopped):
        draw(two, watch, num_inference_steps=100)
    assert watch.steps[:3] == [1, 2, 3]
    assert len(watch.steps) < 90  # messages that were under way: the ranks stop two steps after they hear of it
    assert np.array_equal(draw(two).media.array, before)


def test_idle_for_longer_than_a_step_may_take_does_no_harm(two: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw(two).media.array
    monkeypatch.setattr(two.runner, "_step_timeout_s", 4.0)
    time.sleep(4.2)
    assert np.array_equal(draw(two).media.array, before)


def test_flush_memory_and_facts_are_rank_0s(two: Loaded) -> None:
    draw(two, prompt="a new prompt")
    freed = two.runner.flush()
    assert freed.activations > 0
    assert freed.prompts > 0
    assert two.runner.flush() == (0, 0)
    assert two.runner.facts.device == "cpu"
    assert wait_until(two.runner.memory)["process_resident_bytes"] > 0
    assert list(two.runner.loras()) == ["mono"]
    assert "several ranks" in (two.runner.no_previews("FluxPipeline") or "")


@pytest.mark.parametrize(
    ("fields", "spawned"),
    [
        ({"ulysses_anything": True}, True),
        ({"ulysses_async": True}, False),
        ({"ulysses_size": None, "tp_size": 2}, False),
    ],
    ids=["anything, where none is forked as on GPUs", "async", "tp"],
)
def test_other_ways_to_spread_and_to_start_draw_the_same(
    fields: dict[str, Any], spawned: bool, one: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spawned:
        monkeypatch.setattr(agent, "start_method", lambda: "spawn")
    with ranks(spread(**fields)) as loaded:
        parents = {psutil.Process(pid).ppid() for pid in pids(loaded).values()}
        assert (parents == {os.getpid()}) is spawned
        for asked, cached_steps in ((REUSING, 2), ({"speed": "lossless", "num_inference_steps": 2}, 0)):
            drawn, expected = draw(loaded, **asked), draw(one, **asked)
            assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
            assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps == cached_steps


@pytest.mark.parametrize("name", ["CogView4", "Wan"])
def test_a_family_with_separated_guidance_and_one_of_video(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, save_family(name, tmp_path))
    settings = settings.model_copy(
        update={"defaults": settings.defaults.model_copy(update={"width": 32, "height": 32})}
    )
    call: dict[str, Any] = {"seed": 3, "prompt": "an apple", "negative_prompt": "a pear", "width": 32, "height": 32}
    with ranks(settings.model_copy(update={"parallelism": ParallelismSettings(ulysses_size=2)})) as loaded:
        alone = load(settings)
        for speed in ("lossless", None):
            drawn, expected = (draw(each, **call, num_inference_steps=None, speed=speed) for each in (loaded, alone))
            assert drawn.record.passes == 2
            assert drawn.media.array.shape == expected.media.array.shape
            assert np.allclose(drawn.media.array, expected.media.array, rtol=0, atol=CLOSE)
            assert drawn.record.cache.cached_steps == expected.record.cache.cached_steps
        assert drawn.record.cache.engaged


def test_what_ranks_cannot_do_fails_the_start_with_their_reason() -> None:
    with pytest.raises(LoadError, match="ring attention does not run on a CPU; use ulysses_size or tp_size"):
        RankedRunner.start(spread(ulysses_size=None, ring_size=2), print)


@pytest.mark.parametrize("key", ["ulysses_size", "tp_size"])
def test_heads_that_cannot_be_dealt_out_are_told_before_anything_is_spread(key: str) -> None:
    fields: dict[str, Any] = {"ulysses_size": None, key: 3}
    words = rf"parallelism\.{key}: \d+ attention heads cannot be dealt out to 3; 2"
    with pytest.raises(LoadError, match=words):
        load(spread(**fields))


def test_a_family_that_ranks_draw_wrong_is_refused(tmp_path: Path) -> None:
    settings = settings_of("Chroma", save_family("Chroma", tmp_path))
    sized = settings.model_copy(
        update={
            "defaults": settings.defaults.model_copy(update={"width": 32, "height": 32}),
            "parallelism": ParallelismSettings(ulysses_size=2),
        }
    )
    with pytest.raises(LoadError, match=r"2 ranks draw something else than one .* leave parallelism out"):
        RankedRunner.start(sized, print)


@pytest.mark.parametrize(
    ("model", "others", "words"),
    [
        ({"offload": "model"}, {}, "model.offload does not work with parallelism"),
        ({"device_map": "balanced"}, {}, "model.device_map does not work with parallelism"),
        ({"loras": [{"name": "a", "path": "b"}]}, {}, "model.loras does not work with parallelism.tp_size"),
        ({}, {"quantize": {"quant_type": "int8"}}, "quantize does not work with parallelism.tp_size"),
        ({}, {"parallelism": {}}, "name how many GPUs share what"),
        (
            {},
            {"parallelism": {"tp_size": 2, "ulysses_async": True}},
            "ulysses_async has no effect without ulysses_size",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(model: dict[str, Any], others: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.model_validate({"model": model, "parallelism": {"tp_size": 2}} | others)


def test_a_file_of_cache_dits_pastes_in(tmp_path: Path) -> None:
    file = tmp_path / "cache_dit.yaml"
    file.write_text(
        "parallelism_config: {ulysses_size: 2, tp_size: 2, extra_parallel_modules: [vae]}\nmodel: {path: x/y}\n"
    )
    parallelism = load_settings({CONFIG_VARIABLE: str(file)}).parallelism
    assert parallelism is not None
    assert parallelism.world_size == 4
    assert parallelism.described() == {
        "world_size": 4,
        "ulysses_size": 2,
        "tp_size": 2,
        "extra_parallel_modules": ["vae"],
    }


@pytest.fixture
def before(server: Server) -> Iterator[bytes]:
    """A picture, which the ranks that start anew draw again; the ranks that were lost are gone."""
    picture, seen = server.picture(), server.pids().values()
    yield picture
    assert server.picture() == picture
    assert not any(map(psutil.pid_exists, seen)), "ranks are left"


def test_all_ranks_end_for_the_disk_and_start_again_for_the_next_request(server: Server, before: bytes) -> None:
    with pytest.raises(InvalidRequest, match="on cpu lie there already") as refused:
        server.worker.sleep("host").result(30)
    assert refused.value.param == "level"
    server.ready().runner.wake(lambda: None)
    ended = [psutil.Process(pid) for pid in server.pids().values()]
    slept = server.worker.sleep(None).result(30)
    assert slept.level == "disk"
    assert slept.freed_bytes > 0
    assert gone(ended, 5)
    assert server.worker.state == "ready"


def test_a_rank_that_is_killed_fails_the_request_that_runs(
    server: Server, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    generation = server.generate(num_inference_steps=100)
    running(generation)
    os.kill(server.pids()[1], signal.SIGKILL)
    message = server.lost(generation)
    assert "rank 1" in message  # and not that rank 0 could not exchange anything with it
    assert "failed" not in message
    assert "start anew" in message
    server.ready()
    assert "rank 1 by SIGKILL" in caplog.text


def test_a_rank_that_hangs_in_a_step_fails_the_request_that_runs(
    server: Server, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.ready().runner, "_step_timeout_s", 3.0)
    generation = server.generate(num_inference_steps=100)
    running(generation)
    os.kill(server.pids()[1], signal.SIGSTOP)
    assert "took longer than 3 s" in server.lost(generation)


def test_an_idle_rank_that_hangs_is_noticed(
    server: Server, before: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(group, "SILENT_S", 3.0)
        os.kill(server.pids()[1], signal.SIGSTOP)
        server.wait_for_state("loading")
    assert "rank 1 hangs: nothing was heard of it for 3 s" in caplog.text


def test_an_idle_rank_that_is_killed_is_noticed_and_forked_anew(server: Server, before: bytes) -> None:
    warm = psutil.Process(server.pids()[0]).parent()
    os.kill(server.pids()[0], signal.SIGKILL)
    server.wait_for_state("loading")
    rank = psutil.Process(server.pids()[0])
    assert rank.parent() == warm  # which has imported the libraries
    assert rank.name() == "rank-0"


def test_a_rank_that_runs_out_of_memory_is_told_as_that(
    server: Server, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To decode the picture is one step, and takes as long as a busy machine likes.
    monkeypatch.setattr(server.ready().runner, "_step_timeout_s", 60.0)
    rank = psutil.Process(server.pids()[1])
    rank.rlimit(psutil.RLIMIT_AS, (rank.memory_info().vms + 16 * 2**20, -1))
    message = server.lost(server.generate(width=512, height=512, num_inference_steps=2))
    assert "rank 1 ran out of memory" in message


def test_the_process_that_forks_the_ranks_outlives_a_signal_that_ends_the_server(server: Server) -> None:
    rank = psutil.Process(server.pids()[0])
    warm = rank.parent()
    assert warm is not None
    warm.terminate()
    assert server.picture()
    assert rank.parent() == warm
