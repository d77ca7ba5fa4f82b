"""`make image-check`: the image built for real, run as a hardened container, and measured."""
