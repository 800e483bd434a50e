"""Builds checkpoints: random ones of any shape, layers stacked anew, weights moved between generations.

writer       a checkpoint of any size, written piece by piece, whole or not at all
shrink       the same model, smaller
tokens       a tokenizer for a shrunk vocabulary
synth        plausible random weights
recipe       which layers of which parents, as text, as YAML, by name
stack        re-sequenced layers
gemma3       what a Gemma 3 checkpoint holds
transplant   a Gemma 4 from Gemma 3's text model and another's vision tower
"""
