"""Generators of documentation, snapshots and records: `make docs`, `make models`, `make test-verified`."""
