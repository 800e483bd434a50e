"""Gemma 4 12B, the encoder-free one: pictures and sound projected straight into the decoder.

In reading order:

    config   config.json: the decoder's, and how pictures and sound are cut
    layout   every tensor's name and shape, from the config alone
    unified  the forward pass; each patch and each frame is one soft token
"""
