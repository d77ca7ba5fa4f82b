"""Search for cache settings and steps, with fewer uncached steps as the baseline that they must beat."""
