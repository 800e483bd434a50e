"""The kinds of model."""
