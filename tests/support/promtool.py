"""Prometheus' own checker, where it is installed."""

from __future__ import annotations

import shutil

import pytest

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
