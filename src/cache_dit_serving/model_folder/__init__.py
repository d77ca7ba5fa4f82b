"""A model's folder, as `save_pretrained` wrote it: its components, their files of weights, and the check of both."""
