"""Requests of a benchmark: the same for each server, in the shares of their mix."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.load.source import Entry, Source, mix_of_values, read_mix, read_prompts


def test_the_prompts_that_ship_are_200_different_ones() -> None:
    prompts = read_prompts(None)
    assert len(prompts) == len(set(prompts)) == 200
    assert max(map(len, prompts)) > 5 * min(map(len, prompts))


def test_a_seed_repeats_the_requests_and_another_one_changes_them() -> None:
    mix = mix_of_values({"size": [(96, 96), (64, 64)], "speed": ["fast", "high"]})
    prompts = read_prompts(None)

    def first(seed: int) -> list[tuple[str, dict[str, object]]]:
        return [Source(prompts, mix, seed).request(1, number) for number in range(20)]

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert [body["seed"] for _, body in first(3)][:2] == [1_000_003, 1_000_004]


def test_points_begin_at_other_prompts_and_seeds() -> None:
    source = Source(read_prompts(None), [Entry()], 0)
    points = [{source.request(point, number)[1]["prompt"] for number in range(95)} for point in (1, 2)]
    assert not points[0] & points[1]


def test_without_a_seed_a_request_has_none() -> None:
    assert "seed" not in Source(["a"], [Entry()], None).request(1, 0)[1]


def test_entries_come_in_the_shares_of_their_weights() -> None:
    source = Source(["a"], [Entry(name="draft", weight=3), Entry(name="final", body={"prompt": "b", "seed": 9})], 0)
    drawn = [source.request(1, number) for number in range(2000)]
    counts = Counter(name for name, _ in drawn)
    assert counts["draft"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert next(body for name, body in drawn if name == "final") == {"prompt": "b", "seed": 9}


def test_values_are_combined_and_named_by_those_that_vary() -> None:
    entries = mix_of_values({"size": [(96, 64), (64, 64)], "num_inference_steps": [8]})
    assert [entry.name for entry in entries] == ["96x64", "64x64"]
    assert entries[0].body == {"width": 96, "height": 64, "num_inference_steps": 8}
    assert mix_of_values({}) == [Entry()]


def test_a_mix_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text("mix:\n- {name: draft, weight: 3, body: {speed: fast}}\n- {body: {num_inference_steps: 8}}\n")
    assert [(entry.name, entry.weight, entry.body) for entry in read_mix(file)] == [
        ("draft", 3, {"speed": "fast"}),
        ("entry 2", 1, {"num_inference_steps": 8}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mix: []", "holds no list"),
        ("- {weight: 0}", "0.weight"),
        ("- {wait: 1}", "0.wait: is no field"),
        ("- {body: [1]}", "0.body"),
        ("a: [", "not valid YAML"),
        ("- {body: {seed: 2024-13-45}}", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("3", "holds no list"),
    ],
)
def test_a_mix_that_is_none_is_refused_by_its_field(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_mix(tmp_path / "mix.yaml")


def test_prompts_of_a_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# ours\na cat\n\n  a dog \n")
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "a dog"]
    for content in (b"# none\n", b"\xff\xfe"):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(ConfigError, match="--prompts"):
            read_prompts(tmp_path / "p.txt")
