"""The operator's own check of prompts and outputs."""
