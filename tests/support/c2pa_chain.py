"""A certificate chain as C2PA wants it, and what its own reader says of a file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cache_dit_serving.config.c2pa import C2paSettings

PEM = serialization.Encoding.PEM
USES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "  # noqa: SIM905
    "encipher_only decipher_only".split()
)


@dataclass(frozen=True)
class Chain:
    """Files of an operator, and the root that a reader trusts."""

    settings: C2paSettings
    root: str


def chain_in(folder: Path) -> Chain:
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("A root", "A root", root_key, root_key, is_root=True)
    leaf = _certificate("An operator", "A root", key, root_key, is_root=False)
    folder.mkdir(exist_ok=True)
    (folder / "chain.pem").write_bytes(leaf + root)
    (folder / "key.pem").write_bytes(pem_of(key))
    settings = C2paSettings(certificates=folder / "chain.pem", private_key=folder / "key.pem")
    return Chain(settings, root.decode())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def read(content: bytes, media_type: str, root: str) -> tuple[str, dict[str, Any]]:
    """The state of a file's signature, and its manifest."""
    trust = {"trust": {"trust_anchors": root}, "verify": {"verify_trust": True}}
    with (
        c2pa.Context.from_dict(trust) as context,
        c2pa.Reader(media_type, io.BytesIO(content), context=context) as reader,
    ):
        found = json.loads(reader.json())
        return reader.get_validation_state(), found["manifests"][found["active_manifest"]]


def actions_of(manifest: dict[str, Any]) -> list[tuple[str, str | None, list[str]]]:
    """The actions of a manifest: name, term of its digital source type, and titles of its ingredients."""
    titles = {each["label"]: each["title"] for each in manifest.get("ingredients", ())}
    (actions,) = (each for each in manifest["assertions"] if each["label"].startswith("c2pa.actions"))
    return [
        (
            action["action"],
            action.get("digitalSourceType", "/").rpartition("/")[2] or None,
            [
                titles[ingredient["url"].rpartition("/")[2]]
                for ingredient in action.get("parameters", {}).get("ingredients", ())
            ],
        )
        for action in actions["data"]["actions"]
    ]


def _certificate(
    name: str, issuer: str, key: ec.EllipticCurvePrivateKey, signed_by: ec.EllipticCurvePrivateKey, *, is_root: bool
) -> bytes:
    now = datetime.now(UTC)
    uses = dict.fromkeys(USES, False) | dict.fromkeys(
        ("key_cert_sign", "crl_sign") if is_root else ("digital_signature",), True
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(signed_by, hashes.SHA256()).public_bytes(PEM)


def _named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
