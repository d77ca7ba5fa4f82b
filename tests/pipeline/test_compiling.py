"""torch.compile on the embedded model: what compiles, and what must not compile again. One compiled model for all."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch._inductor
from safetensors.torch import load_file, save_file

from cache_dit_serving.config.acceleration import CompileSettings, QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, ServerSettings, Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline import compiling, sleeping
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, WeightsChoice
from tests.support.families import save_family
from tests.support.in_process import EMBEDDED, UNCACHED, draw, inside, load, tiny_wan, unwarmed
from tests.support.loras import save_lora, with_loras

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # torch warns about itself

STAGES: list[str] = []
MONOCHROME = {"name": "mono", "scale": 0.5}


def with_compile(settings: Settings, **fields: Any) -> Settings:
    return settings.model_copy(update={"compile": CompileSettings(**fields)})


@pytest.fixture(scope="module", autouse=True)
def quick_start_of_the_compiler() -> Iterator[None]:
    """Spare what torch does before its first graph: a pool of compiling processes, and one for each vector extension.

    The pool's processes and those that try an extension import torch. The graphs and their code are the same.
    """
    inductor: Any = torch._inductor.config
    with inductor.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        yield


@pytest.fixture(scope="module")
def eager() -> Loaded:
    return load(unwarmed(with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    from cache_dit_serving.pipeline.assemble import assemble

    folder = tmp_path_factory.mktemp("loras")
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    for seed, name in enumerate(("red", "blue")):
        save_lora(pipe, folder / f"{name}.safetensors", seed=seed)
    settings = with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))
    settings = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"lora_folder": folder}),
            "limits": settings.limits.model_copy(update={"max_loras": 1}),
        }
    )
    kept = tmp_path_factory.mktemp("compiled")
    return assemble(with_compile(settings, sizes=((96, 96),), folder=kept), STAGES.append)


REQUESTS: dict[str, dict[str, Any]] = {
    "cached": {},
    "no cache": {"speed": "lossless"},
    "another speed": {"speed": "fast"},
    "settings of its own": {"cache": {"residual_diff_threshold": 0.05, "Fn_compute_blocks": 2}},
    "dynamic pruning": {"cache": {"cache_type": "DBPrune", "residual_diff_threshold": 0.1}},
    "larger": {"width": 112, "height": 112},
    "another shape": {"width": 80, "height": 112},
    "a lora": {"loras": [MONOCHROME]},
    "the lora at another scale": {"loras": [MONOCHROME | {"scale": 0.9}], "speed": "lossless"},
    "the lora at a third scale": {"loras": [MONOCHROME | {"scale": -1.0}]},
    "more steps": {"num_inference_steps": 12},
}
FEW = {"num_inference_steps": 8}
"""Steps of all others, of which the cache takes some."""


@pytest.mark.verified
def test_no_request_compiles_anything_anew_and_pictures_are_nearly_the_eager_ones(
    eager: Loaded, compiled: Loaded
) -> None:
    assert any("compiling with one picture (1 of 3)" in stage for stage in STAGES)
    drawn: dict[str, Sampled] = {}
    for name, fields in REQUESTS.items():
        drawn[name] = draw(compiled, **FEW | fields)
        assert drawn[name].record.compiled_graphs == 0, name
        expected = draw(eager, **FEW | fields)
        assert drawn[name].record.cache.cached_steps == expected.record.cache.cached_steps, name
        assert np.allclose(drawn[name].media.array, expected.media.array, rtol=0, atol=1e-4), name
    assert all(drawn[name].record.cache.cached_steps for name in ("cached", "another speed", "dynamic pruning"))
    for name, fields in reversed(REQUESTS.items()):
        again = draw(compiled, **FEW | fields)
        assert again.record.compiled_graphs == 0
        assert np.array_equal(again.media.array, drawn[name].media.array), f"{name}: not as before"


@pytest.mark.verified
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ["embedded", "Wan"])
def test_a_shadow_run_compiles_nothing_since_the_cached_output_of_its_shape_has(
    name: str, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are counted as they are traced; code for them would take most of the time, and change no count."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, dynamic, mode: compile_module(module, dynamic=dynamic, backend="eager"),
    )
    settings = with_loras(EMBEDDED, LoraSettings(name="mono", path="embedded/monochrome", scale=0.0))
    sizes: list[dict[str, Any]] = [{"width": 80}, {"height": 112}, {"width": 80, "loras": [MONOCHROME]}]
    if name == "Wan":
        settings = tiny_wan(tmp_path)
        sizes = [{"num_frames": 5}, {"num_frames": 9, "width": 48}]
    loaded = load(unwarmed(with_compile(settings, dynamic=dynamic)))
    graphs = 0
    for size in sizes:
        fields = size | {"num_inference_steps": 6, "cache": {"max_warmup_steps": 1, "residual_diff_threshold": 0.9}}
        cached = draw(loaded, **fields).record
        assert cached.cache.cached_steps > 0
        graphs += cached.compiled_graphs
        lossless = fields | {"speed": "lossless", "cache": None}
        assert draw(loaded, **lossless).record.compiled_graphs == 0, fields
    assert graphs > 0
    torch._dynamo.reset()


@pytest.mark.verified
def test_loras_of_the_folder_that_take_each_others_place_compile_once(compiled: Loaded) -> None:
    graphs: dict[str, list[int]] = {}
    for name in ("red", "blue", "red"):
        drawn = draw(compiled, loras=[{"name": name}], num_inference_steps=2)
        graphs.setdefault(name, []).append(drawn.record.compiled_graphs)
        assert list(compiled.runner.loras()) == ["mono", name]
    assert graphs["red"][0] > 0
    assert graphs["blue"] == [0]
    assert graphs["red"][1] == 0


@pytest.mark.verified
def test_graphs_draw_the_same_after_a_sleep_and_after_other_weights_and_none_is_compiled_anew(
    compiled: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = FEW | {"loras": [MONOCHROME]}
    expected = draw(compiled, **fields).media.array
    monkeypatch.setattr(sleeping, "why_not_in_host_memory", lambda device: None)
    monkeypatch.setattr(inside(compiled), "_reload_folder", tmp_path)
    assert compiled.runner.sleep(lambda: False)
    compiled.runner.wake(lambda: None)
    shutil.copytree(EMBEDDED_FOLDER / "transformer", tmp_path / "start" / "transformer")
    (tmp_path / "trained" / "transformer").mkdir(parents=True)
    file = "diffusion_pytorch_model.safetensors"
    trained = {name: each * 1.02 for name, each in load_file(EMBEDDED_FOLDER / "transformer" / file).items()}
    save_file(trained, tmp_path / "trained" / "transformer" / file)
    for folder, same in ((None, True), ("trained", False), ("start", True)):
        if folder is not None:
            compiled.runner.reload(WeightsChoice(folder, None), lambda: None)
        drawn = draw(compiled, **fields)
        assert drawn.record.compiled_graphs == 0
        assert np.array_equal(drawn.media.array, expected) is same


@pytest.mark.verified
def test_what_is_compiled_is_kept_in_the_folder(compiled: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert any(folder.glob("fxgraph/*/*")), "no graphs"


def test_without_a_compiler_pythons_headers_or_a_writable_folder_the_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match=r"compile\.folder cannot be written"):
        compiling.prepare(CompileSettings(folder=tmp_path / "file" / "below"))
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(LoadError, match=r"there is no Python\.h \(in Debian's python3-dev\); install it"):
            compiling.prepare(CompileSettings())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoadError, match=r"there is no C\+\+ compiler \(g\+\+\)"):
        compiling.prepare(CompileSettings())


def test_blocks_are_those_of_the_cache_where_the_class_names_none(tmp_path: Path) -> None:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(save_family("PixArtAlpha", tmp_path))
    assert not getattr(pipe.transformer, "_repeated_blocks", None)
    compiling.compile_blocks(pipe, ["transformer.transformer_blocks"], CompileSettings())
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.transformer_blocks)
    with pytest.raises(LoadError, match="has no repeated blocks that are known"):
        compiling.compile_blocks(pipe, [], CompileSettings())


AS_TORCHAO_LEAVES_THEM = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True}


@pytest.mark.parametrize(("mode", "tuned"), [("default", False), ("max-autotune", True)])
def test_kernels_are_tuned_under_max_autotune_alone_and_the_results_are_kept(
    mode: str, tuned: bool, tmp_path: Path
) -> None:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(save_family("PixArtAlpha", tmp_path))
    settings = CompileSettings.model_validate({"mode": mode})
    inductor: Any = torch._inductor.config
    with inductor.patch(AS_TORCHAO_LEAVES_THEM | {"autotune_local_cache": False}):
        compiling.compile_blocks(pipe, ["transformer.transformer_blocks"], settings)
        assert [getattr(inductor, name) for name in AS_TORCHAO_LEAVES_THEM] == [tuned, tuned]
        assert inductor.autotune_local_cache
        assert not inductor.triton.cudagraphs


def test_torchao_still_turns_the_tuning_on() -> None:
    inductor: Any = torch._inductor.config
    with inductor.patch(dict.fromkeys(AS_TORCHAO_LEAVES_THEM, False)):
        load(unwarmed(UNCACHED).model_copy(update={"quantize": QuantizeSettings(quant_type="float8_weight_only")}))
        assert {name: getattr(inductor, name) for name in AS_TORCHAO_LEAVES_THEM} == AS_TORCHAO_LEAVES_THEM, (
            "pipeline/compiling.py need not turn it off for torchao any more"
        )


def test_sizes_want_a_warm_up() -> None:
    with pytest.raises(ValueError, match=r"compile\.sizes has no effect with server\.warm_up false"):
        Settings(server=ServerSettings(warm_up=False), compile=CompileSettings(sizes=((64, 64),)))
