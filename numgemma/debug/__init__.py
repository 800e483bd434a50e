"""From another engine's dump to the mistake that made it."""
