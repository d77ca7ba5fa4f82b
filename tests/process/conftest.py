"""Tests of this folder begin on idle servers."""

from __future__ import annotations

from tests.support.server import wait_for_what_is_left

pytest_runtest_call = wait_for_what_is_left
