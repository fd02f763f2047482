"""Private inference."""
