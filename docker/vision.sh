#!/bin/sh
# What models with a vision processor need (requirements-vision.txt), beside the image's own torch, which it fits.
set -eu
uv pip install torchvision==0.28.0
