"""LoRA files: where they lie, and their contents by their headers. Nothing here imports torch."""
