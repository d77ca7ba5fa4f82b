"""The snapshot of the OpenAPI document: `python -m tests.support.snapshot` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.routes import OPERATIONS

SNAPSHOT = Path(__file__).resolve().parents[1] / "snapshots" / "openapi.json"


def rendered(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(rendered(openapi_document(OPERATIONS)), encoding="utf-8")
