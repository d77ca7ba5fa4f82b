"""Signatures by C2PA (https://spec.c2pa.org): who made a file, by which means, and that no byte was changed since."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cache_dit_serving import __version__
from cache_dit_serving.config.c2pa import C2paSettings
from cache_dit_serving.errors import ConfigError, InternalError
from cache_dit_serving.media.provenance import DigitalSource, Ingredient

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
            self._signed(_example(), "image/png", _manifest(DigitalSource.GENERATED), None)
        except self._c2pa.C2paError as error:
            why = " ".join(str(error).split())
            raise ConfigError(
                f"outputs.c2pa: nothing can be signed with these certificates, private key and algorithm "
                f"({settings.algorithm}): {why}"
            ) from error

    def sign(
        self, content: bytes, media_type: str, source: DigitalSource, ingredients: Sequence[Ingredient] = ()
    ) -> bytes:
        """Return a file with a signed manifest in it. Its pixels and samples stay as they are.

        Args:
            ingredients: files of the request; of an edited output at least one, the edited file first.

        Raises:
            InternalError: it could not be signed; the log has the reason.
        """
        try:
            return self._signed(content, media_type, _manifest(source, ingredients), self._settings.timestamp_url)
        except self._c2pa.C2paError as error:
            logger.error("a file (%s) could not be signed: %s", media_type, " ".join(str(error).split()))
            raise InternalError("The file could not be signed; the server's log has the details.") from error

    def _signed(self, content: bytes, media_type: str, manifest: dict[str, Any], timestamp_url: str | None) -> bytes:
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
            c2pa.Builder(manifest, context) as builder,
        ):
            builder.sign(signer, media_type, io.BytesIO(content), signed)
        return signed.getvalue()


def _manifest(source: DigitalSource, ingredients: Sequence[Ingredient] = ()) -> dict[str, Any]:
    """Return a manifest of C2PA 2.x.

    The ingredients are named by field and SHA-256. Their files are not handed to c2pa-python, which would parse them
    in this process, so that a manifest of their own is not carried on.
    """
    labels = [f"ingredient_{index}" for index in range(len(ingredients))]
    edited = source is DigitalSource.EDITED
    actions = _edited(source, *labels) if edited else [_action("c2pa.created", source, labels)]
    return {
        "claim_generator_info": [{"name": "cache-dit-serving", "version": __version__}],
        "ingredients": [
            {
                "label": label,
                "title": ingredient.field,
                "instance_id": ingredient.digest,
                "relationship": "parentOf" if edited and label == labels[0] else "inputTo",
            }
            for label, ingredient in zip(labels, ingredients, strict=True)
        ],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def _edited(source: DigitalSource, parent: str, *others: str) -> list[dict[str, Any]]:
    return [_action("c2pa.opened", None, [parent]), _action("c2pa.edited", source, others)]


def _action(name: str, source: DigitalSource | None, labels: Sequence[str]) -> dict[str, Any]:
    action: dict[str, Any] = {"action": name}
    if source is not None:
        action["digitalSourceType"] = source.address
    if labels:
        action["parameters"] = {"ingredientIds": [*labels]}
    return action


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
