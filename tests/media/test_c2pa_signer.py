"""Files signed by C2PA, as its own reader verifies them, and certificates that cannot sign."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from pydantic import ValidationError

from cache_dit_serving import __version__
from cache_dit_serving.config.c2pa import C2paSettings
from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import ConfigError, InternalError
from cache_dit_serving.media.c2pa_signer import C2paSigner
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import KINDS, OutputSpec
from cache_dit_serving.media.provenance import DigitalSource, Ingredient
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.preflight import check_signing
from tests.support.c2pa_chain import Chain, actions_of, chain_in, pem_of, read
from tests.support.random_outputs import two_outputs

FORMATS = [(kind, name) for kind in KINDS for name in KINDS[kind].formats]
IMAGE, MASK = (Ingredient(field, f"sha256:{digit * 64}") for field, digit in (("image_urls.0", "a"), ("mask_url", "b")))
EDITED = "compositeWithTrainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain_in(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def signer(chain: Chain) -> C2paSigner:
    return C2paSigner(chain.settings)


@pytest.mark.parametrize(("kind", "name"), FORMATS)
def test_a_file_is_signed_and_states_its_origin(kind: MediaKind, name: str, chain: Chain, signer: C2paSigner) -> None:
    media_type = KINDS[kind].formats[name]
    spec = OutputSpec(name, source=DigitalSource.EDITED, ingredients=(IMAGE, MASK), sign=signer.sign)
    content, _ = encode(two_outputs(kind)[0], spec, {"prompt": "a cat"})
    state, manifest = read(content, media_type, chain.root)
    assert state == "Trusted"
    assert actions_of(manifest) == [("c2pa.opened", None, ["image_urls.0"]), ("c2pa.edited", EDITED, ["mask_url"])]
    assert [(each["relationship"], each["instance_id"]) for each in manifest["ingredients"]] == [
        ("parentOf", IMAGE.digest),
        ("inputTo", MASK.digest),
    ]
    assert (manifest["signature_info"]["common_name"], manifest["signature_info"]["issuer"]) == ("An operator", "Tests")
    (generator,) = manifest["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("cache-dit-serving", __version__)
    plain, _ = encode(two_outputs(kind)[0], OutputSpec(name, source=DigitalSource.EDITED), {"prompt": "a cat"})
    assert len(content) - len(plain) < 20_000, "no thumbnail"
    changed = bytearray(content)
    place = content.index(b"digitalsourcetype/composite")
    changed[place] ^= 1
    assert read(bytes(changed), media_type, chain.root)[0] == "Invalid"


@pytest.mark.parametrize(
    ("source", "ingredients", "actions"),
    [
        (DigitalSource.GENERATED, (), [("c2pa.created", "trainedAlgorithmicMedia", [])]),
        (DigitalSource.GENERATED, (MASK,), [("c2pa.created", "trainedAlgorithmicMedia", ["mask_url"])]),
        (DigitalSource.EDITED, (IMAGE,), [("c2pa.opened", None, ["image_urls.0"]), ("c2pa.edited", EDITED, [])]),
        (DigitalSource.BLANK, (), [("c2pa.created", "algorithmicMedia", [])]),
    ],
)
def test_a_manifest_says_whether_a_file_was_created_or_edited(
    source: DigitalSource, ingredients: tuple[Ingredient, ...], actions: list[Any], chain: Chain, signer: C2paSigner
) -> None:
    spec = OutputSpec("webp", source=source, ingredients=ingredients, sign=signer.sign)
    content, _ = encode(two_outputs(MediaKind.IMAGE)[0], spec, {})
    state, manifest = read(content, "image/webp", chain.root)
    assert state == "Trusted"
    assert actions_of(manifest) == actions
    assert [each["title"] for each in manifest.get("ingredients", ())] == [each.field for each in ingredients]


def test_signing_keeps_the_pixels_and_the_other_metadata(signer: C2paSigner) -> None:
    output, plain = two_outputs(MediaKind.IMAGE)[0], OutputSpec("png", source=DigitalSource.GENERATED)
    opened = [
        Image.open(io.BytesIO(encode(output, spec, {"prompt": "a cat"})[0]))
        for spec in (plain, OutputSpec("png", source=DigitalSource.GENERATED, sign=signer.sign))
    ]
    assert np.array_equal(np.asarray(opened[0]), np.asarray(opened[1]))
    assert opened[0].info == opened[1].info


def test_a_timestamp_authority_that_does_not_answer_fails_the_request_alone(chain: Chain) -> None:
    settings = chain.settings.model_copy(update={"timestamp_url": "http://127.0.0.1:9/"})
    spec = OutputSpec("png", source=DigitalSource.GENERATED, sign=C2paSigner(settings).sign)
    with pytest.raises(InternalError, match="could not be signed"):
        encode(two_outputs(MediaKind.IMAGE)[0], spec, {})


def test_a_certificate_that_cannot_sign_is_refused(chain: Chain, tmp_path: Path) -> None:
    other, nonsense = tmp_path / "other.pem", tmp_path / "nonsense.pem"
    other.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1())))
    nonsense.write_text("no certificate")
    cases: dict[str, dict[str, Any]] = {
        "chain.pem.*No such file": {"certificates": tmp_path / "chain.pem"},
        "private_key.*No such file": {"private_key": tmp_path / "missing.pem"},
        "is no PEM file": {"certificates": nonsense},
        "nothing can be signed": {"private_key": other},
        "nothing can be signed .*ed25519": {"algorithm": "ed25519"},
    }
    for words, changed in cases.items():
        settings = chain.settings.model_copy(update=changed)
        with pytest.raises(ConfigError, match=words):
            check_signing(OutputSettings(c2pa=settings))
    check_signing(OutputSettings(c2pa=chain.settings))
    check_signing(OutputSettings())


def test_without_its_package_the_start_says_how_to_install_it(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-c2pa\.txt"):
        C2paSigner(chain.settings)


def test_a_signature_of_files_that_state_nothing_is_refused(chain: Chain) -> None:
    with pytest.raises(ValidationError, match="c2pa signs what provenance states"):
        OutputSettings(c2pa=chain.settings, provenance=False)


def test_a_server_with_a_missing_certificate_ends_with_status_2_and_one_line(tmp_path: Path, chain: Chain) -> None:
    settings = C2paSettings(certificates=tmp_path / "missing.pem", private_key=chain.settings.private_key)
    environ = os.environ | {"CACHE_DIT_SERVING__OUTPUTS__C2PA": settings.model_dump_json()}
    words = [sys.executable, "-m", "cache_dit_serving.cli.main", "serve", "--config", "embedded", "--port", "0"]
    ended = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "outputs.c2pa.certificates" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
