"""By how much two tensors differ, and how finely each run rounds.

In reading order:

    precision  how finely a run rounds: by its own word, and by the bits of its values; the table of tolerances
    metrics    the errors of a tensor, of its worst token, of its worst channel; scale and cosine
    overlap    the values that two dumps both know, where one holds only a part, or rounded ones
    discrete   choices (experts, the next token), and what a flip of one changes further on
    logits     what a difference does to the probabilities
"""
