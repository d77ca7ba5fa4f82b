"""Families of real pipeline classes with tiny random weights."""
