"""No tracked file holds a secret."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.server import ROOT

SECRET = re.compile(
    r"""
    (?:AKIA|ASIA)[0-9A-Z]{16}\b                          # key of AWS
    | -----BEGIN[ ](?:[A-Z]+[ ])*PRIVATE[ ]KEY-----\s+[A-Za-z0-9+/=\s]{40}
    | \bhf_[A-Za-z0-9]{30,}                              # Hugging Face
    | \bgh[pousr]_[A-Za-z0-9]{36}                        # GitHub
    | \bsk-[A-Za-z0-9_-]{16,}                            # OpenAI's form, and that of this server's keys
    | \bBearer[ ][A-Za-z0-9._~+/-]{24,}
    """,
    re.VERBOSE,
)
LITERALS = ("AKIA", "ASIA", "PRIVATE KEY-----", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "sk-", "Bearer ")
"""Each secret has one. To look for them takes a tenth of the time of the pattern."""
MADE_UP = {
    "Bearer sk-4f1d0c6a9e2b7385",
    "sk-0123456789abcdef",
    "sk-4f1d0c6a9e2b7385",
    "sk-9b8a7c6d5e4f3021",
    "sk-nobody-at-all-here",
    "sk-root-0123456789abc",
    "sk-secret-0123456789",
    "sk-secret-of-the-benchmark",
    "sk-studio-0123456789",
}
"""Keys of tests and examples, that open nothing."""


def secrets_of(text: str) -> list[str]:
    """Return what looks like a secret and is not known to be made up."""
    if not any(literal in text for literal in LITERALS):
        return []
    return [found for found in SECRET.findall(text) if found not in MADE_UP]


def test_no_tracked_file_holds_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert files
    # The end of what is found stays out of the report.
    assert [
        f"{file.relative_to(ROOT)}: {found[:12]}..."
        for file in files
        for found in secrets_of(file.read_text(encoding="utf-8", errors="replace"))
    ] == []


@pytest.mark.parametrize(
    "parts",
    [
        ("AKIA", "Z7Q2M4X9B1N8V5C3"),
        ("-----BEGIN RSA ", "PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 4),
        ("-----BEGIN ", "PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 4),
        ("hf_", "qWeRtYuIoPaSdFgHjKlZxCvBnMqWeRtYuI"),
        ("ghp_", "qWeRtYuIoPaSdFgHjKlZxCvBnMqWeRtYuIoP"),
        ("sk-", "proj-Zx81kQm2Lw93"),
        ("Bearer ", "eyJhbGciOiJIUzI1NiJ9.e30.abc"),
    ],
    ids=lambda parts: parts[0].strip(" -"),
)
def test_each_kind_of_secret_is_found(parts: tuple[str, str]) -> None:
    assert len(secrets_of(f'key = "{"".join(parts)}"')) == 1
