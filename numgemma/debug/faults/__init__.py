"""The known faults: mistakes that implementations of Gemma 4 have made, each as a small change of one function.

`applied` runs a model with one; `debug.whatif` looks for the one that reproduces another engine's numbers.  T is for
the decoder's trunk, K shared keys and values, P per-layer embeddings, M mixture of experts, V vision, A audio, U what
12B has in the place of towers, N Gemma 3n, D drafters, E EmbeddingGemma 2, F DiffusionGemma, S shares of devices,
C chunks and cached passes, G where Google's package and Transformers part; a form of a fault has a word after its id,
as T15-erf.

    fault      what a fault is: a small change of one function or one row, and how a model runs with it
    trunk      faults of the decoder's trunk
    attending  faults of attention
    branches   faults of shared keys, per-layer embeddings and experts
    pictures   faults of the vision tower
    sounds     faults of the audio tower
    unified    faults of 12B's pictures, sound and image mask
    streams    faults of Gemma 3n
    drafts     faults of drafters, and of the loop that they draft in
    vectors    faults of EmbeddingGemma 2
    canvas     faults of DiffusionGemma
    ranks      faults of a model that is split over several devices
    chunks     faults of a pass that is not the first
    sequences  faults of keys and values that are another sequence's
"""

from numgemma.debug.faults import (  # noqa: F401 - enter their faults
    attending,
    branches,
    canvas,
    chunks,
    drafts,
    pictures,
    ranks,
    sequences,
    sounds,
    streams,
    trunk,
    unified,
    vectors,
)
from numgemma.debug.faults.fault import CATALOGUE, Fault, Rewired, applied, fault, find, row_fault, swapped

__all__ = ["CATALOGUE", "Fault", "Rewired", "applied", "fault", "find", "row_fault", "swapped"]
