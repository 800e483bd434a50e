"""Builds checkpoints (random ones of any shape, layers stacked anew, weights moved between generations), and inspects
what others built: whether it is sound, what it is made of, where it leaves its parents.

    writer        a checkpoint of any size, written piece by piece, whole or not at all
    tokens        a tokenizer for a shrunk vocabulary
    gemma3        what a Gemma 3 checkpoint holds
    synth         plausible random weights
    recipe        which layers of which parents, as text, as YAML, by name
    stack         re-sequenced layers
    transplant    a Gemma 4 from Gemma 3's text model and another's vision tower
    sketch        a tensor in a few numbers
    findings      one thing that is wrong with a checkpoint
    lint_config   rules about config.json
    lint_files    rules about the other files
    lint_tensors  rules about names and shapes
    lint_values   rules about the numbers
    lint          all of them
    rounding      how far rounding moves the numbers of a tensor
    relations     what one tensor is to another, as a whole
    blocks        what it is made of, line by line
    mixture       what it is the sum of, and by what weights
    sums          the sums that a number can be, where differences were kept or dropped
    thinned       differences to a base of which some were dropped: TIES, DARE
    edits         a difference of few directions
    mixtures      which of these a tensor is
    experts       which experts of a parent a layer has, and whether its router follows
    certain       how certain that is
    partners      which layers a layer may be mixed from
    homes         where a layer is from as a whole
    followers     what says too little by itself, told by what is beside it
    lineage       which parent's layer each tensor came from
    inventory     the same in words, as a table, as a recipe
    summary       the recipe in a few lines
    merge_yaml    the recipe of an element-wise merge, as mergekit's YAML
    seams         where the activations leave the parent's range
    seam_fixes    whether a fix without training brings them back
    loops         how much a text repeats itself
    pictures      the layer matrix and the seams, drawn
    audit_why     why a tensor is not what it should be
    audit         whether a file is a faithful copy of another, tensor by tensor
    audit_files   the two, opened, whatever formats they are in
    audit_page    an audit as a page
"""
