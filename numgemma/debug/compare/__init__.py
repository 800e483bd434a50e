"""Two dumps, point by point: where do they part?

In reading order:

    fitted     both brought to what both can be asked: the last token, the likeliest tokens
    name_map   one dump under the other's names
    front_end  pixels and mel frames of another preprocessing
    precheck   before any number: same tokens, same model, same way of running?
    result     what a comparison says
    scoring    an error in units of the floor, and where NOISE, SUSPECT and FAULT begin
    pair       one point of both dumps: its values, and by how much they differ
    states     what a point is called: BIT-EXACT, NOISE, SUSPECT, FAULT, INHERITED, TIE, ...
    hints      what a wrong tensor looks like: scaled, permuted, one token late, a copy
    third_run  a third run that is right: which of the two is off
    reused     points that hold another point's numbers: the dump is wrong, not the run
    words      the comparison as text
    diff       all of it, in order: the verdict, and the first point that differs
"""
