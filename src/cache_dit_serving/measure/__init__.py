"""Measuring: distances between outputs, load, the search for settings. No module imports torch at its top."""
