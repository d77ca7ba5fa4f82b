"""Keys of the server that made-up requests go to, where the run has keys (`make conformance`)."""

from __future__ import annotations

import os

KEYS = (
    {"admin": "key-of-conformance-0123", "generate": "key-of-conformance-4567"}
    if "CONFORMANCE_KEYS" in os.environ
    else {}
)
"""Scope -> the key that has it; none where the run has no keys."""
