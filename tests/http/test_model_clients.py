"""Several models behind one address, by the clients that people have: OpenAI's SDK and BentoML's."""

from __future__ import annotations

import bentoml
import openai
import pytest
from bentoml.exceptions import NotFound

from tests.support.openai_sdk import sdk
from tests.support.server import Server

PROMPT = "a red apple on a blue background"
FIELDS = {"seed": 5, "num_inference_steps": 10}


@pytest.fixture(scope="module")
def client(several: Server) -> openai.OpenAI:
    return sdk(several)


@pytest.fixture(scope="module")
def by_name(several: Server) -> dict[str, str]:
    """The pictures of the models that draw from a prompt, as `/generate` draws them, in base64."""
    return {name: several.generate(model=name, **FIELDS).json()["images"][0] for name in ("apples", "quick")}


def test_the_sdk_lists_names_and_aliases(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["apples", "dall-e-3", "quick", "classes", "torn"]
    assert client.models.retrieve("quick").id == "quick"


def test_the_sdk_draws_with_each_model(client: openai.OpenAI, by_name: dict[str, str]) -> None:
    assert by_name["apples"] != by_name["quick"]
    for name, expected in {**by_name, "dall-e-3": by_name["apples"]}.items():
        # By the name of an older model of OpenAI's, an answer has addresses unless it is asked for bytes.
        answer = client.images.generate(prompt=PROMPT, model=name, response_format="b64_json", extra_body=FIELDS)
        assert [image.b64_json for image in answer.data or ()] == [expected], name


def test_the_sdk_raises_not_found_with_the_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.images.generate(prompt=PROMPT, model="no-such")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert "apples, dall-e-3, quick, classes, torn" in raised.value.message
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("no-such")
    assert raised.value.code == "model_not_found"


def test_bentomls_client_draws_with_each_model(several: Server, by_name: dict[str, str]) -> None:
    with bentoml.SyncHTTPClient(several.url, timeout=120) as client:
        for name, expected in by_name.items():
            answer = client.generate(prompt=PROMPT, model=name, **FIELDS)
            assert answer["images"] == [expected], name
        answer = client.generate(class_label=3, model="classes", seed=5, num_inference_steps=2)
        assert len(answer["images"]) == 1
        with pytest.raises(NotFound, match="'no-such' is not served here; there is apples, dall-e-3, quick"):
            client.generate(prompt=PROMPT, model="no-such")
