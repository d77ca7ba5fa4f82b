"""One self-contained HTML page of a measurement: its parts (`parts.py`), its plots and its document."""
