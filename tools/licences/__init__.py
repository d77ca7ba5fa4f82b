"""Licences of what the image's Python environment holds: docs/licences.md."""
