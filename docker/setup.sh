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

# What models with a vision processor (requirements-vision.txt) and `quantize` (requirements-quantization.txt) need,
# beside the image's own torch, which they fit.
uv pip install torchvision==0.28.0 torchao==0.18.0
