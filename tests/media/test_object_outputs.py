"""Outputs in object storage, against a server of S3."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import requests
from pydantic import ValidationError

from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound
from cache_dit_serving.media.object_outputs import ObjectOutputs
from tests.support.s3 import BUCKET, CREDENTIALS, S3, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def outputs(s3: S3, request: pytest.FixtureRequest) -> ObjectOutputs:
    """Below a prefix of the test's own."""
    return ObjectOutputs(OutputSettings(store=f"s3://{BUCKET}/{request.function.__name__}", store_options=s3.options))


def test_files_are_fetched_by_signed_urls_as_what_they_are(outputs: ObjectOutputs) -> None:
    large = b"2" * 12_000_000  # in several parts
    first, second = outputs.save_all([(b"1", "png"), (large, "mp4")], "jobs/a")
    assert first.startswith("jobs/a/")
    for name, content, media_type in ((first, b"1", "image/png"), (second, large, "video/mp4")):
        stored = outputs.find(name)
        assert stored.media_type == media_type
        for url in (str(stored.place), outputs.address(name, "url", "http://here")):
            assert "X-Amz-Expires=3600" in url
            answer = requests.get(url, timeout=10)
            assert (answer.status_code, answer.content) == (200, content)
            assert answer.headers["Content-Type"] == media_type


def test_what_is_written_at_the_root_has_no_folder(outputs: ObjectOutputs) -> None:
    (name,) = outputs.save_all([(b"1", "png")], None)
    assert "/" not in name
    assert requests.get(str(outputs.find(name).place), timeout=10).content == b"1"


def test_they_are_listed_with_their_sizes_and_times(outputs: ObjectOutputs) -> None:
    names = outputs.save_all([(b"1", "png"), (b"12", "webp")], "jobs/a")
    listed = outputs.listed()
    assert sorted((each.name, each.bytes) for each in listed) == sorted(zip(names, (1, 2), strict=True))
    assert all(abs(each.modified - time.time()) < 60 for each in listed)


@pytest.mark.parametrize(
    "name", ["none.png", "a/../b.png", "../b.png", "/b.png", "a//b.png", ".hidden.png", "b.txt", "b\0.png", ""]
)
def test_no_other_name_leads_anywhere(outputs: ObjectOutputs, name: str) -> None:
    with pytest.raises(NotFound):
        outputs.find(name)


def test_files_of_one_request_are_written_all_or_none(outputs: ObjectOutputs, s3: S3) -> None:
    before = s3.names()
    with pytest.raises(KeyError):
        outputs.save_all([(b"1", "png"), (b"2", "no format")], "a")
    assert s3.names() == before


def test_deleted_outputs_are_gone_and_others_stay(outputs: ObjectOutputs) -> None:
    deleted, kept = outputs.save_all([(b"1", "png"), (b"2", "png")], "jobs/a")
    outputs.delete([deleted, "jobs/a/gone-before.png"], "jobs/a")
    with pytest.raises(NotFound):
        outputs.find(deleted)
    assert outputs.find(kept)


def test_a_cleared_folder_is_not_its_neighbour(outputs: ObjectOutputs) -> None:
    (name,) = outputs.save_all([(b"1", "png")], "jobs/a")
    (neighbour,) = outputs.save_all([(b"2", "png")], "jobs/ab")
    outputs.clear("jobs/a")
    outputs.clear("jobs/a")
    with pytest.raises(NotFound):
        outputs.find(name)
    assert outputs.find(neighbour)


def test_paths_are_refused(outputs: ObjectOutputs) -> None:
    outputs.check("a", "url")
    with pytest.raises(InvalidRequest) as refused:
        outputs.check("a", "path")
    assert refused.value.param == "output_format"


def test_a_bucket_that_is_missing_is_not_named_to_the_caller(s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    outputs = ObjectOutputs(OutputSettings(store="s3://unmade/made", store_options=s3.options))
    with pytest.raises(InternalError) as failed:
        outputs.save_all([(b"1", "png")], None)
    assert "unmade" not in failed.value.message
    assert "NoSuchBucket" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"store": "ftp://host/folder"}, "s3://bucket/prefix"),
        ({"store": "s3://"}, "s3://bucket/prefix"),
        ({"store": "/folder"}, "s3://bucket/prefix"),
        ({"store": "s3://bucket", "store_options": {"endpont": "http://a"}}, "endpont"),
        ({"store_options": {"region": "us-east-1"}}, "without store"),
        ({"store": "s3://bucket", "sign_s": 604_801}, "604800"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OutputSettings.model_validate(fields)
