"""Transformers, run and recorded under our names.

In reading order:

    towers     what its vision and audio towers compute, picture by picture
    embedders  the same of a model that has none
    hooks      the run: a hook on every module, and what no module returns
"""
