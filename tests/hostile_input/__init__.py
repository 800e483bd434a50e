"""Mutated files of every kind that enters, and what becomes of them.  `make fuzz` runs twenty thousand.

    mutants   what is done to bytes, to text and to JSON, by a seeded generator
    kinds     the kinds of files: a sound one, how it is read, what must hold where it is accepted
    harness   runs them, and counts: refused well, accepted and right, traceback, hang

A new reader or format enters by a line of kinds.KINDS.
"""
