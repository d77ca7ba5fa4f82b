"""What tokenizers cut off of prompts: found on real pipelines, in the words of the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, ServerSettings, Settings
from cache_dit_serving.jobs.output_warnings import output_warnings
from cache_dit_serving.pipeline.prompts import cuts_of, listening
from cache_dit_serving.pipeline.protocol import Cut, Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import save_family
from tests.support.in_process import load

LONG = "a red apple on a blue background " + " ".join(f"word{number}" for number in range(40))


def cuts(loaded: Loaded, **fields: Any) -> tuple[Cut, ...]:
    request = GenerateRequest.model_validate({"seed": 3, "num_inference_steps": 4} | fields)
    call = plan(resolve(request, loaded.model)).call
    return loaded.runner.sample(call, Unwatched()).record.cuts


def warnings(loaded: Loaded, **fields: Any) -> list[RequestWarning]:
    request = GenerateRequest.model_validate({"seed": 3, "num_inference_steps": 4} | fields)
    call = plan(resolve(request, loaded.model)).call
    return list(output_warnings(call, loaded.runner.sample(call, Unwatched()).record))


def test_a_prompt_that_fits_is_read_whole(uncached: Loaded) -> None:
    assert cuts(uncached, prompt="a red apple on a blue background") == ()


def test_the_lost_words_are_those_of_the_request(uncached: Loaded) -> None:
    by_clip, by_t5 = cuts(uncached, prompt=LONG)
    assert (by_clip.param, by_clip.component, by_clip.tokens) == ("prompt", "tokenizer", 24)
    assert (by_t5.component, by_t5.tokens) == ("tokenizer_2", 32)
    for cut in (by_clip, by_t5):
        assert LONG.endswith(cut.lost)
        assert 20 < len(cut.lost) < len(LONG)
        assert cut.read_by == ()
    assert len(by_t5.lost) < len(by_clip.lost)


def test_a_prompt_is_tokenized_once_and_the_cut_is_the_one_that_a_second_run_finds(uncached: Loaded) -> None:
    part = next(iter(uncached.runner._parts.values()))  # type: ignore[attr-defined]
    with listening(part.tokenizers) as counted:
        found = cuts(uncached, prompt=LONG + " counted", max_sequence_length=32)
    assert len(counted) == len(part.tokenizers) == 2
    assert all(each.kept is not None for each in counted)
    assert cuts_of([each._replace(kept=None) for each in counted], {"prompt": LONG + " counted"}) == found


def test_tokenizers_without_offsets_say_nothing_of_the_kept_characters(uncached: Loaded) -> None:
    part = next(iter(uncached.runner._parts.values()))  # type: ignore[attr-defined]
    tokenizer = part.tokenizers["tokenizer"]
    options = {"truncation": True, "max_length": 8}
    with listening(part.tokenizers) as heard:
        tokenizer([LONG, "a cat"], **options)
        tokenizer([LONG, "a cat"], return_overflowing_tokens=True, **options)  # one row for each part of a text
        tokenizer("a cat", LONG, **options)  # two texts in one row
    assert [each.kept is None for each in heard] == [False, False, True, True, True]
    assert heard[1].kept == len("a cat")


def test_a_tokenizer_that_reads_all_of_it_is_named(uncached: Loaded) -> None:
    (by_clip,) = cuts(uncached, prompt=LONG, max_sequence_length=512)
    assert by_clip.read_by == ("tokenizer_2",)
    (warning,) = warnings(uncached, prompt=LONG, max_sequence_length=512)
    assert (warning.param, warning.code) == ("prompt", "truncated")
    words = len(by_clip.lost.split())
    start = f"tokenizer keeps 24 tokens and cut off {words} words (tokenizer_2 read all of it): '"
    assert warning.message == f"{start}{by_clip.lost}'"


def test_a_warning_repeats_no_more_than_its_start(uncached: Loaded) -> None:
    _, warning = warnings(uncached, prompt="apple " * 1600)
    assert warning.message.endswith("...'")
    assert "1,5" in warning.message
    assert len(warning.message) < 400


def test_the_field_is_told_by_its_words_inside_a_template(tmp_path: Path) -> None:
    loaded = load(
        Settings(
            model=ModelSettings(path=str(save_family("QwenImage", tmp_path / "model")), dtype="float32"),
            cache=None,
            defaults=RequestDefaults(width=32, height=32),
            limits=Limits(min_side=16),
            server=ServerSettings(warm_up=False),
        )
    )
    fields = {"negative_prompt": "too many words " * 200, "true_cfg_scale": 4.0, "max_sequence_length": 64}
    (cut,) = cuts(loaded, prompt="a cat", **fields)
    assert (cut.param, cut.component) == ("negative_prompt", "tokenizer")
    assert fields["negative_prompt"].strip().endswith(cut.lost)  # type: ignore[attr-defined]
