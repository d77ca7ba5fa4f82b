"""The error of a folder that cannot be loaded."""


class BrokenFolder(Exception):
    """A folder cannot be loaded as a model. The message names the file within the folder and the remedy."""
