"""The layers, as free functions that the families share."""
