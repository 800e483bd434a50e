"""Transformers, run and recorded under our names.

In reading order:

    towers  what its vision and audio towers compute, picture by picture
    hooks   the run: a hook on every module, and what no module returns
"""
