"""What enters the model: text, chat, pictures, sound and clips, as arrays.

A prompt is spelled out, cut into tokens, and its files become arrays:

    sandbox     the process in which templates run, bounded in time and memory
    template    a chat template and its variables -> text
    chat        messages from a file, checked -> text, by the checkpoint's own template
    bytelevel   two tokenizers in plain Python, where the package `tokenizers` is not
    tokenizer   text -> token ids, and back
    tasks       the words before a text that is to become a vector
    images      a picture -> patches
    audio       a recording -> log-mel frames
    video       a clip -> patches of some of its frames, and when they are seen
    processors  Transformers' processors, a record each
    processor   a prompt and its files -> all the arrays that enter the model
    media       those arrays, held together; where each stands in the prompt
    named       arrays that a run takes by name, beside or in the place of token ids
"""
