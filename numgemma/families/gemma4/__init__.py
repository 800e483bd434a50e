"""Gemma 4: E2B, E4B, 26B-A4B and 31B."""
