#!/bin/sh
# Completes the image's environment, in $VIRTUAL_ENV. The sources come to $BENTO_PATH/src after this script has run.
set -eu

# The commands, which only an installed package would bring: `docker run IMAGE cache-dit-serving models --check`.
install_command() {
    printf '#!/bin/sh\nPYTHONPATH="$BENTO_PATH/src/src" exec "%s/bin/python" -m %s "$@"\n' "$VIRTUAL_ENV" "$2" \
        > "$VIRTUAL_ENV/bin/$1"
    chmod 755 "$VIRTUAL_ENV/bin/$1"
}
install_command cache-dit-serving cache_dit_serving.cli.main
install_command cache-dit-serve cache_dit_serving.serve

# For `compile`: Inductor calls g++ on a CPU, Triton's launcher gcc on a GPU. Without it the start refuses `compile`.
if [ "${IMAGE_COMPILER:-none}" = c++ ]; then
    apt-get update
    apt-get install -y --no-install-recommends g++ libc6-dev
    rm -rf /var/lib/apt/lists/*
fi

# What models with a vision processor (requirements-vision.txt) and `quantize` (requirements-quantization.txt) need,
# beside the image's own torch, which they fit.
uv pip install torchvision==0.28.0 torchao==0.18.0

# PyPI's torchvision does not import beside a CPU build of torch, and transformers fails with it.
if ! "$VIRTUAL_ENV/bin/python" -c 'import torchvision' 2> /dev/null; then
    echo "torchvision does not fit this torch and is left out: models with a vision processor do not load" >&2
    uv pip uninstall torchvision
fi

# What is installed, as CycloneDX (docs/image.md). Its validation takes 20 s; `make image-check` does it.
mkdir -p "$VIRTUAL_ENV/share"
uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --no-validate --gather-license-texts \
    --output-file "$VIRTUAL_ENV/share/sbom.cdx.json" "$VIRTUAL_ENV/bin/python"

# The same as a list: package, version and licence, a line each.
"$VIRTUAL_ENV/bin/python" - "$VIRTUAL_ENV/share" << 'END'
import json
import sys
from pathlib import Path


def name_of(entry):
    """Return a licence's name; nothing of a licence that only its text tells."""
    if "text" not in entry.get("license", {}):
        name = entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
        return name.rpartition(" :: ")[2]  # of a classifier
    # The tool keeps a name that SPDX does not know, such as "Apache 2.0", as a text.
    text = entry["license"]["text"]
    return "" if "encoding" in text or "\n" in text["content"] else text["content"]


lines = []
for package in json.loads(Path(sys.argv[1], "sbom.cdx.json").read_text(encoding="utf-8"))["components"]:
    entries = package.get("licenses", [])
    names = sorted({name_of(entry) for entry in entries} - {""})
    licence = ", ".join(names) or ("its text is in the bill of materials" if entries else "undeclared")
    lines.append(f"{package['name']}\t{package['version']}\t{licence}\n")
Path(sys.argv[1], "licences.tsv").write_text("".join(sorted(lines, key=str.lower)), encoding="utf-8")
END

rm -rf ~/.cache ~/.local # of pip and uv
