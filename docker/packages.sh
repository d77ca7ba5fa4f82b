#!/bin/sh
# What models with a vision processor (requirements-vision.txt) and `quantize` (requirements-quantization.txt) need,
# beside the image's own torch, which they fit.
set -eu
uv pip install torchvision==0.28.0 torchao==0.18.0
