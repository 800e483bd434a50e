"""Two dumps, point by point."""
