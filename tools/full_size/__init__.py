"""Models at full size on a machine without a GPU: what fits, what a step costs, and that no step waits."""
