"""Time series with missing entries."""
