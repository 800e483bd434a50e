"""Files of weights, one module a storage format.

A format opens a file as tensors by their names, with shapes, on a memory map; what is wrong with a file ends in a
sentence.  Nothing else in the package knows of a format: checkpoint.py makes one tree of what they open.

    safetensors  tensors end to end behind a JSON header
"""
