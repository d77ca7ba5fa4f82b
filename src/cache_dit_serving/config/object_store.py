"""Object storage from the settings: a URL, and options by obstore's names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

ObjectStore = S3Store | GCSStore | AzureStore
"""Stores of obstore that can sign URLs."""
EXAMPLES = {"s3": "s3://bucket/prefix", "gs": "gs://bucket/prefix", "az": "az://container/prefix"}
"""Example URL of each supported scheme."""
CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "root_certificate",
        "timeout",
    }
)
"""Options of obstore's HTTP client. obstore 0.12.1 panics if one is passed among the storage's options."""
MOST_RETRIES = 3
RETRY_S = 30
"""Seconds after which retries stop. obstore's default, 180 s, would block a request while the storage is down."""


def object_store(url: str, options: Mapping[str, str | bool]) -> ObjectStore:
    """Return the storage behind a URL. Opens no connection; credentials come from the environment.

    Raises:
        ValueError: the URL or an option is not valid.
    """
    scheme, _, place = url.partition("://")
    if scheme not in EXAMPLES or not place.strip("/"):
        raise ValueError(f"give a URL such as {', '.join(EXAMPLES.values())}; leave it out for a local folder")
    client: Any = {name: value for name, value in options.items() if name in CLIENT_OPTIONS}
    config: Any = {name: value for name, value in options.items() if name not in CLIENT_OPTIONS}
    retries: Any = {"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}
    try:
        store = from_url(url, config=config, client_options=client, retry_config=retries)
    except BaseError as error:
        raise ValueError(summary(error)) from error
    assert isinstance(store, ObjectStore)
    return store


def summary(error: Exception) -> str:
    """Return an obstore error's text on one line, without the debug dump of its source."""
    return " ".join(str(error).partition("Debug source:")[0].split())
