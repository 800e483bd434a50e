"""Transformers, run and recorded under our names.

In reading order:

    arrays     PyTorch's tensors as NumPy arrays
    held       which weights it holds in memory
    towers     what its vision and audio towers compute, picture by picture
    embedders  the same of a model that has none
    towers_3n  the same of Gemma 3n's
    streams    the decoder of Gemma 3n
    canvas     both passes of DiffusionGemma
    hooks      the run: a hook on every module, and what no module returns
    live       a model in memory, recorded while its user runs it
"""
