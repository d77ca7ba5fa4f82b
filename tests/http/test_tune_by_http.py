"""A search on a running server, by its public API alone."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.search.by_http import ByHttp
from cache_dit_serving.measure.search.drawer import CannotDraw
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.prompt_lists import own_prompts
from cache_dit_serving.measure.search.session import Options, Session
from tests.support.server import Server

pytestmark = pytest.mark.slow

STEPS = 6
FIELDS = {"num_inference_steps": STEPS, "width": 80, "height": 80}


def test_a_search_of_a_server_leaves_it_as_it_is(server: Server, tmp_path: Path) -> None:
    def speeds() -> object:
        found = httpx.get(f"{server.url}/capabilities").json()["speeds"]
        learnt = ("seconds", "seconds_from")
        return [{name: value for name, value in speed.items() if name not in learnt} for speed in found]

    before = speeds()
    floors = ("high:ssim=.3", "balanced:ssim=.2", "fast:ssim=.1")
    drawer = ByHttp(server.url, FIELDS)
    options = Options(tmp_path, own_prompts()[:6], outputs=2, unseen=4, trials=2, floors=floors)
    outcome = Session(drawer, options, None).run()
    drawer.close()
    assert speeds() == before
    assert outcome.checked
    assert all(each.holds for each in outcome.checked), outcome.headline()
    assert {"configured high", "configured balanced", "configured fast"} <= set(
        ", ".join(outcome.labels.values()).split(", ")
    )
    settings = load_settings({CONFIG_VARIABLE: str(tmp_path / "tuned.yaml")})
    assert settings.speeds.fast.measured is not None


def test_a_server_tells_of_a_point_what_it_reused_and_refuses_what_does_not_fit(server: Server) -> None:
    drawer, case = ByHttp(server.url, FIELDS), Case(own_prompts()[0], 0)
    settings = CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9)
    drawn = drawer.draw(case, Point(STEPS, settings))
    assert drawn.cached_steps > 0
    assert list(drawn.diffs) == ["transformer.transformer_blocks"]
    assert drawn.media.array.shape == (80, 80, 3)
    with pytest.raises(CannotDraw, match="12 blocks"):
        drawer.draw(case, Point(STEPS, CacheSettings(Fn_compute_blocks=99)))
    drawer.close()


def test_a_search_is_that_of_the_model_that_it_names(several: Server) -> None:
    sent: list[httpx.Request] = []
    client = httpx.Client(base_url=several.url, timeout=120, event_hooks={"request": [sent.append]})
    drawer, other = ByHttp(several.url, FIELDS, model="quick", client=client), ByHttp(several.url, FIELDS)
    drawer.draw(Case(own_prompts()[0], 0), Point(STEPS, None))
    assert [request.url.query for request in sent[:2]] == [b"model=quick"] * 2
    assert json.loads(sent[2].content)["model"] == "quick"
    assert drawer.subject.conditions != other.subject.conditions
    drawer.close()
    other.close()
    with pytest.raises(ConfigError, match=r"^--model: the model 'big' is not served here; there is apples"):
        ByHttp(several.url, FIELDS, model="big")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no address", "http://[::1"])
def test_an_address_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        ByHttp(url, {})
