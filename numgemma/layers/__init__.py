"""The layers, as free functions over arrays that the families share.

In reading order:

    attention    the axis key; queries, keys and values of one decoder layer
    feedforward  the gated MLP, and the routed experts
    per_layer    the small input that every layer gets for every token
    altup        several residual streams, of which a layer computes on one
    laurel       a residual of low rank beside attention
    vision       the vision tower: patches -> soft tokens
    conformer    the audio tower: log-mel frames -> soft tokens
    mobilenet    the vision tower of Gemma 3n, a convolution net: a picture -> soft tokens
    usm          the audio tower of Gemma 3n

What they are given: w, the weights of a module by name; spec, a row of the layer table; c, the config of a tower;
config, that of the text model unless a docstring says otherwise; tap, see trace.py.
"""
