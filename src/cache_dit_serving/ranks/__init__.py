"""Runner of a model on several processes, one per GPU. It implements the same protocol as the in-process runner."""
