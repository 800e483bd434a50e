"""Where another engine's numbers part from ours, and why.

The way a dump takes: `capture` or `readers` bring the other engine's run under our names; `noise` says how large an
error rounding alone makes; `compare` calls every point by its error in units of that noise; `blame` recomputes each
step from the dump's own tensors, so that who made an error is told from who inherited it, and tries the known `faults`
on it; `report` shows what was found.  `measure` has the numbers that all of them use.

    measure    the numbers by which two tensors are compared
        precision  how finely a run rounds: by its own word, and by the bits of its values; the table of tolerances
        metrics    the errors of a tensor, of its worst token, of its worst channel; scale and cosine
        overlap    the values that two dumps both know, where one holds only a part, or rounded ones
        discrete   choices (experts, the next token), and what a flip of one changes further on
        logits     what a difference does to the probabilities
    readers    other engines' dumps, read into ours
        names         whose tensor is it: other engines' names -> our points and axes
        common        what every reader ends with: a Dump that says how exact it is
        mapping       a map file, for names that are no module paths
        torch_file    what `torch.save` wrote, without torch and without unpickling
        states        Transformers' output_hidden_states, in a list, a stack or a folder
        tensors       folders and files of .pt, .npy, .npz and .safetensors
        golden        JSON and JSONL with logits, or with the likeliest tokens
        hf_debugger   Transformers' own debugger
        llama_text    llama.cpp's printed tensors
        llama_logits  llama.cpp's files of logits
    capture    Transformers, run and recorded under our names
        arrays     PyTorch's tensors as NumPy arrays
        held       which weights it holds in memory
        towers     what its vision and audio towers compute, picture by picture
        embedders  the same of a model that has none
        towers_3n  the same of Gemma 3n's
        streams    the decoder of Gemma 3n
        canvas     both passes of DiffusionGemma
        hooks      the run: a hook on every module, and what no module returns
        live       a model in memory, recorded while its user runs it
    noise      how large an error rounding alone makes
        perturb     runs that are right and yet not equal: rounded, and summed, as another engine might
        rounding    engines that round what enters a product: llama.cpp, int8, FP8, NVFP4, mobile files
        unfinished  the finished runs of a floor that is not whole
        floor       the noise floor: the size of that error at every point, for one checkpoint and one prompt
    compare    two dumps, point by point: what each point is called, and where they first part
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
    faults     the known mistakes, each as a small change
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
    blame      one step at a time: who made an error, and which mistake it is
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
    report     a page that needs nothing else, and pictures
        chart      what the pictures show, as numbers
        subject    what a report is about
        equations  what a point is: its equation, and its line of source
        glossary   the words of the report
        svg        the pictures of the page
        cards      a card for each bad point
        layer      the layer where it first goes wrong, with what was found at each point
        table      every point, to be sorted and filtered
        page       the page
        depth      error against depth, as `diff --plot` draws it
        png        the pictures as files
    sweep      many prompts with many checkpoints and engines: a row for each pair, and what all rows say together
        prompts  texts, ids and chats from a file, or random ids
        pair     what is run of one prompt: its rows
        ledger   the file of rows: each written once, whatever is killed
        cluster  who runs: Dask's workers, which are processes
        trends   all rows together: what drifts, which prompts are worst, what fails first
        page     the same as a page
        order    what is asked of a sweep, and the run
"""
