"""A safety check by an address of the operator: one POST of JSON for each subject."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pybase64

from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.safety.verdict import CheckFailed

MOST_ANSWER_BYTES = 65_536


class HttpCheck:
    """Asks the address. Any number of threads may use it."""

    def __init__(self, settings: SafetySettings) -> None:
        assert settings.check is not None
        self._address = settings.check
        self._timeout_s = settings.timeout_s
        self._send_files = settings.send_files
        # Without compression: a small answer could unpack to gigabytes.
        self._headers = {"Accept-Encoding": "identity"}
        if settings.key:
            self._headers["Authorization"] = f"Bearer {settings.key}"
        # The environment's proxies and .netrc stay out: the key is for the address alone.
        self._client = httpx.Client(trust_env=False, follow_redirects=False, timeout=settings.timeout_s)

    def __call__(self, subject: Mapping[str, Any]) -> Any:
        """Return the JSON that the address answers.

        Raises:
            CheckFailed: it answers with another status than 200, with no JSON, or with too much.
            httpx.HTTPError: it cannot be reached.
        """
        body = {name: value for name, value in subject.items() if name != "file"}
        if self._send_files and "file" in subject:
            body["file"] = pybase64.b64encode_as_string(subject["file"])
        end = time.monotonic() + self._timeout_s
        with self._client.stream("POST", self._address, json=body, headers=self._headers) as response:
            if response.status_code != httpx.codes.OK:
                raise CheckFailed(f"it answered {response.status_code}")
            content = b""
            for piece in response.iter_raw():
                content += piece
                if len(content) > MOST_ANSWER_BYTES:
                    raise CheckFailed(f"it answered more than {MOST_ANSWER_BYTES:,} bytes")
                if time.monotonic() > end:
                    raise CheckFailed("its answer did not end in time")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise CheckFailed("it did not answer with JSON") from None
