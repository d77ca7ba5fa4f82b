"""Gate of a configuration: its speeds are drawn against uncached outputs, and held to their floors."""
