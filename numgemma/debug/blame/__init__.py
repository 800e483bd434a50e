"""Whose fault a wrong number is, and which.

In reading order:

    flow_towers  which points a point of a tower is computed from
    flow         which points a point is computed from
    inherit      which point can have its error from which
    one_step     every step of a dump recomputed from the dump's own tensors before it
    replay       the first step that was computed wrongly; a graft: would the end be right without it
    whatif       the known faults tried on that step, until one makes the same wrong numbers
    words        all that as text
"""
