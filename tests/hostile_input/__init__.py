"""Mutated files of every kind that enters, and what becomes of them: `make fuzz` runs twenty thousand.  And what is
left where a verb cannot write or is killed: `make kills`.

    mutants   what is done to bytes, to text and to JSON, by a seeded generator
    families  kinds of files that one family has, and of formats of its own
    kinds     the kinds of files: a sound one, how it is read, what must hold where it is accepted
    harness   runs them, and counts: refused well, accepted and right, traceback, hang
    bounds    whole numbers made huge: refused, or they cost nothing
    writers   every verb that writes, and whether what it leaves is whole
    full_disk what becomes of a verb on a disk that is full at one of its writes
    kills     what a verb leaves that is killed at a random moment

A new reader or format enters by a line of kinds.KINDS, a verb that writes by one of writers.COMMANDS.
"""
