"""Methods that make synthetic tables."""
