"""Signatures by C2PA (https://spec.c2pa.org): who made a file, by which means, and that no byte was changed since."""

from __future__ import annotations

import io
import logging
from typing import Any

from PIL import Image

from cache_dit_serving import __version__
from cache_dit_serving.config.c2pa import C2paSettings
from cache_dit_serving.errors import ConfigError, InternalError
from cache_dit_serving.media.provenance import DigitalSource

logger = logging.getLogger(__name__)

REQUIREMENTS = "requirements-c2pa.txt"
NO_THUMBNAIL = {"builder": {"thumbnail": {"enabled": False}}}
"""c2pa-python puts a picture of up to 1024 px into the manifest by default: half a megabyte in a WebP."""


class C2paSigner:
    """Signs files with the operator's certificate. Any number of threads may use it."""

    def __init__(self, settings: C2paSettings) -> None:
        """
        Raises:
            ConfigError: a file cannot be read, the package is not installed, or nothing can be signed with them.
        """
        try:
            import c2pa
        except ImportError as error:
            raise ConfigError(f"outputs.c2pa needs c2pa-python: pip install -r {REQUIREMENTS}") from error
        self._c2pa: Any = c2pa
        self._settings = settings
        self._certificates = _read("certificates", settings)
        self._private_key = _read("private_key", settings)
        try:
            # Without the timestamp authority: it need not answer for a server to start.
            self._signed(_example(), "image/png", DigitalSource.GENERATED, None)
        except self._c2pa.C2paError as error:
            why = " ".join(str(error).split())
            raise ConfigError(
                f"outputs.c2pa: nothing can be signed with these certificates, private key and algorithm "
                f"({settings.algorithm}): {why}"
            ) from error

    def sign(self, content: bytes, media_type: str, source: DigitalSource) -> bytes:
        """Return a file with a signed manifest in it. Its pixels and samples stay as they are.

        Raises:
            InternalError: it could not be signed; the log has the reason.
        """
        try:
            return self._signed(content, media_type, source, self._settings.timestamp_url)
        except self._c2pa.C2paError as error:
            logger.error("a file (%s) could not be signed: %s", media_type, " ".join(str(error).split()))
            raise InternalError("The file could not be signed; the server's log has the details.") from error

    def _signed(self, content: bytes, media_type: str, source: DigitalSource, timestamp_url: str | None) -> bytes:
        c2pa, signed = self._c2pa, io.BytesIO()
        information = c2pa.C2paSignerInfo(
            alg=self._settings.algorithm,
            sign_cert=self._certificates,
            private_key=self._private_key,
            ta_url=timestamp_url,
        )
        with (
            c2pa.Signer.from_info(information) as signer,
            c2pa.Context.from_dict(NO_THUMBNAIL) as context,
            c2pa.Builder(_manifest(source), context) as builder,
        ):
            builder.sign(signer, media_type, io.BytesIO(content), signed)
        return signed.getvalue()


def _manifest(source: DigitalSource) -> dict[str, Any]:
    return {
        "claim_generator_info": [{"name": "cache-dit-serving", "version": __version__}],
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": source.address}]},
            }
        ],
    }


def _read(name: str, settings: C2paSettings) -> bytes:
    path = getattr(settings, name)
    try:
        content: bytes = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"outputs.c2pa.{name} {str(path)!r}: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise ConfigError(f"outputs.c2pa.{name} {str(path)!r} is no PEM file")
    return content


def _example() -> bytes:
    """Return a picture of one pixel as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
