"""Settings of the signature by C2PA."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cache_dit_serving.section import Section


class C2paSettings(Section):
    """The operator's certificate, which signs every output by C2PA."""

    certificates: Path = Field(
        description="PEM file with the signing certificate first, then those that issued it, without the root."
    )
    private_key: Path = Field(description="PEM file with the certificate's private key, PKCS #8 without a password.")
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field(
        "es256", description="Signature algorithm, which the key decides."
    )
    timestamp_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Timestamp authority (RFC 3161), asked for every file. Without it a signature counts only while "
        "the certificate is valid. While it does not answer, requests fail.",
    )
