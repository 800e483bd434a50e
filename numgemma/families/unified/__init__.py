"""Gemma 4 12B, the encoder-free one: pictures and sound projected straight into the decoder."""
