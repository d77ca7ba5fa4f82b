"""Measuring: distances between outputs, load on a server, and the search for settings."""
