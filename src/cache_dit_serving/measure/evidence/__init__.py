"""Evidence from live traffic that a speed holds its floors or misses them: pure functions of samples."""
