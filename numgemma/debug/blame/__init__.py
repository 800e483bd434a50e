"""Whose fault a wrong number is, and which.

In reading order:

    budget    a search that may have only so much time
    emulate   whether an engine that rounds its inputs is right: its own arithmetic, until it has its numbers
    limits    the noise of a step
    one_step  every step of a dump recomputed from the dump's own tensors before it
    alone     some layers without the others, which hand on what they did before
    wiring    whether a wrong step is right of other inputs
    replay    the first step that was computed wrongly; a graft: would the end be right without it
    spans     faults of some tokens alone: cached steps, one chunk, one picture
    other     the keys and values of another sequence, which the engine may have read
    trial     known faults tried on the wrong steps: everywhere, in one layer, on some tokens, in pairs
    whatif    the simplest of them that makes the same wrong numbers
    words     all that as text
    doctor    all of it, in the order in which a person would ask, and one verdict
"""
