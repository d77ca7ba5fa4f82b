"""Distances between outputs of one kind: pictures, videos, sounds."""
