"""Prompt embeddings that are kept: the same pictures, and what makes a prompt another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.pipeline.prompt_cache import PromptCache, _key, _NotKept
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.images import apple
from tests.support.in_process import EMBEDDED, UNCACHED, Watch, draw, inside, load, unwarmed
from tests.support.loras import with_loras


def keeping(most_bytes: int, settings: Settings = EMBEDDED) -> Settings:
    return settings.model_copy(update={"limits": settings.limits.model_copy(update={"prompt_cache_bytes": most_bytes})})


@pytest.mark.verified
def test_pictures_are_the_same_with_it_and_without() -> None:
    loaded, encoding = load(EMBEDDED), load(unwarmed(keeping(0)))
    prompts = ["a red apple", "a blue robot", "a red apple", "a red  apple", "a blue robot"]
    hits = []
    for index, prompt in enumerate(prompts):
        fields: dict[str, Any] = {"prompt": prompt, "seed": index, "speed": ("lossless", "fast")[index % 2]}
        drawn, expected = draw(loaded, **fields), draw(encoding, **fields)
        assert np.array_equal(drawn.media.array, expected.media.array), prompt
        hits.append((drawn.record.prompt_hits, drawn.record.prompt_misses))
        assert (expected.record.prompt_hits, expected.record.prompt_misses) == (0, 0)
    assert hits == [(0, 1), (0, 1), (1, 0), (0, 1), (1, 0)]
    assert loaded.runner.memory()["prompt_cache_bytes"] > 0
    assert encoding.runner.memory()["prompt_cache_bytes"] == 0


def test_the_words_that_a_tokenizer_cut_off_are_told_again(uncached: Loaded) -> None:
    prompt = "a red apple " * 30
    first, second = (draw(uncached, prompt=prompt, num_inference_steps=2) for _ in range(2))
    assert second.record.prompt_hits == 1
    assert first.record.cuts
    assert second.record.cuts == first.record.cuts


def test_another_length_is_another_prompt() -> None:
    loaded = load(unwarmed(UNCACHED))
    for length in (32, 16):
        assert draw(loaded, max_sequence_length=length, num_inference_steps=2).record.prompt_misses == 1
    assert draw(loaded, max_sequence_length=32, num_inference_steps=2).record.prompt_hits == 1


def test_a_caller_does_not_hit_the_prompts_of_another() -> None:
    loaded = load(unwarmed(UNCACHED))
    request = GenerateRequest(prompt="a secret", seed=1, num_inference_steps=2)
    calls = [replace(plan(resolve(request, loaded.model)).call, caller=name) for name in ("a", "b", "a", "b", "")]
    hits = [loaded.runner.sample(call, Watch(lambda done: None)).record.prompt_hits for call in calls]
    assert hits == [0, 0, 1, 1, 0]


@pytest.mark.verified
def test_it_is_bounded_in_bytes_and_the_one_used_longest_ago_goes_first() -> None:
    loaded = load(EMBEDDED)
    assert loaded.runner.flush().prompts > 0  # the warm-up's
    draw(loaded, prompt="one", num_inference_steps=2)
    size = loaded.runner.memory()["prompt_cache_bytes"]
    loaded = load(unwarmed(keeping(2 * size)))
    hits: dict[str, list[int]] = {}
    for prompt in ("one", "two", "one", "three", "one", "two"):
        hits.setdefault(prompt, []).append(draw(loaded, prompt=prompt, num_inference_steps=2).record.prompt_hits)
        assert loaded.runner.memory()["prompt_cache_bytes"] <= 2 * size
    assert hits == {"one": [0, 1, 1], "two": [0, 0], "three": [0]}
    assert loaded.runner.flush().prompts == 2 * size
    assert draw(loaded, prompt="two", num_inference_steps=2).record.prompt_hits == 0


@pytest.mark.verified
def test_a_lora_of_a_text_encoder_makes_the_prompt_another_one(tmp_path: Path, uncached: Loaded) -> None:
    plain: Any = inside(uncached)._part.pipe
    name, layer = next(each for each in plain.text_encoder.named_modules() if each[0].endswith("q_proj"))
    key = f"text_encoder.{name}.lora_{{}}.weight"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key.format(side): torch.randn(shape, generator=generator)
        for side, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2)))
    }
    save_file(tensors, tmp_path / "words.safetensors")
    words = LoraSettings(name="words", path=str(tmp_path / "words.safetensors"), scale=0.0)
    mono = LoraSettings(name="mono", path="embedded/monochrome", scale=0.0)
    loaded = load(unwarmed(with_loras(UNCACHED, words, mono)))

    def hits(*loras: dict[str, Any]) -> int:
        return draw(loaded, prompt="a cat", loras=list(loras), num_inference_steps=2).record.prompt_hits

    strong, weak = {"name": "words", "scale": 1.0}, {"name": "words", "scale": 0.5}
    assert [hits(), hits(), hits(strong), hits(weak), hits(strong), hits({"name": "mono"})] == [0, 1, 0, 0, 1, 1]


def test_keys_are_equal_for_equal_arguments_alone() -> None:
    different = [1, True, 1.0, "1", None, [1], (1,), ["1"], {"a": 1}, torch.float32, apple(8, 8), apple(8, 9)]
    keys = [_key(value) for value in different]
    assert len(set(keys)) == len(keys)
    assert _key(apple(8, 8)) == _key(apple(8, 8))
    for value in (torch.zeros(1), [torch.Generator()], object()):
        with pytest.raises(_NotKept):
            _key(value)


def test_what_a_pipeline_changes_in_place_stays_as_it_was_kept() -> None:
    class Pipe:
        calls = 0

        def encode_prompt(self, prompt: str, extra: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
            self.calls += 1
            return torch.ones(2), {"lengths": [len(prompt)]}

    pipe: Any = Pipe()
    cache = PromptCache(1000, lambda: ())
    cache.install(pipe)
    pipe.encode_prompt("a")[0].zero_()
    pipe.encode_prompt(prompt="a")[0].zero_()
    assert pipe.encode_prompt("a")[0].tolist() == [1, 1]
    assert pipe.calls == 1
    pipe.encode_prompt("a", extra=torch.zeros(1))
    pipe.encode_prompt("a", extra=torch.zeros(1))
    assert pipe.calls == 3
