"""Models on several processes."""
