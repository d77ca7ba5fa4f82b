"""Names, file names and captions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from training.captions import COLOURS, SIZES, caption, vocabulary, with_article
from training.data import MORE_OBJECTS, OBJECTS, Package, asset_name, fetch, object_names
from training.samples import COLOUR_CYCLE, grid_prompt


def test_selections() -> None:
    assert len(object_names("embedded")) == 50
    assert len(object_names("all")) == 84
    assert object_names("cat, owl") == ["cat", "owl"]
    assert not OBJECTS.keys() & MORE_OBJECTS.keys()


def test_an_unknown_object_is_named() -> None:
    with pytest.raises(ValueError, match="teapot"):
        object_names("cat,teapot")


def test_asset_names_keep_the_variation_selector() -> None:
    assert asset_name("\N{RED APPLE}") == "1f34e.webp"
    assert asset_name("\N{HEAVY BLACK HEART}\ufe0f") == "2764-fe0f.webp"


def test_a_changed_tarball_is_refused(tmp_path: Path) -> None:
    package = Package("@scope/name", "1.0.0", "0" * 64)
    (tmp_path / "scope-name-1.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(package, tmp_path)


def test_articles() -> None:
    assert with_article("red apple") == "a red apple"
    assert with_article("owl") == "an owl"
    assert with_article("cherries") == "cherries"


def test_captions_name_object_and_background() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = caption("red apple", "sky blue", "big", rng, p_no_background=0, p_empty=0)
        assert "big red apple" in text
        assert "sky blue" in text


def test_share_of_captions_left_open() -> None:
    rng = random.Random(0)
    texts = [caption("owl", "pink", "", rng, p_no_background=0.1, p_empty=0.1) for _ in range(4000)]
    assert 0.08 < sum(text == "" for text in texts) / 4000 < 0.12
    assert 0.08 < sum(text in ("owl", "an owl") for text in texts) / 4000 < 0.12


def test_every_caption_is_made_of_known_words() -> None:
    rng, nouns = random.Random(0), object_names("all")
    known = set(vocabulary(nouns))
    for _ in range(2000):
        text = caption(rng.choice(nouns), rng.choice(list(COLOURS)), rng.choice(SIZES), rng)
        assert set(text.replace(",", "").split()) <= known


def test_the_sample_grid_uses_every_colour() -> None:
    assert set(COLOUR_CYCLE) == set(COLOURS)
    assert grid_prompt(7, "cherries") == ("cherries on a gray background", "gray")
