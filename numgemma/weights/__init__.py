"""Files of weights, one module a storage format.

A format opens a file as tensors by their names, with shapes, on a memory map; what is wrong with a file ends in a
sentence.  Nothing else in the package knows of a format: checkpoint.py makes one tree of what they open.

    safetensors     tensors end to end behind a JSON header
    packed          a stored matrix that is decoded as it is read; stacks of them, and one above the other
    bits            codes of a few bits out of bytes and words; tables of small floats
    compressed      compressed-tensors, ModelOpt
    fp8             Transformers' fine-grained FP8
    mlx             MLX: affine, mxfp4, mxfp8, nvfp4
    gptq            GPTQ and AWQ
    bnb             bitsandbytes
    mobile          Google's QAT mobile files
    quantised       the leaves of a module -> one such matrix, by whichever format they are of
    gguf_steps      how far apart the values lie that a block of a GGUF file can hold
    gguf            a GGUF file: its keys, and its tensors as they lie
    gguf_gemma      llama.cpp's names and keys -> the checkpoint's names and config.json
    gguf_gemma3n    the same for Gemma 3n
    gguf_towers     the towers of Gemma 4, in a file of their own
    gguf_unified    the embedders of 12B, in a file of their own
    gguf_mmproj     which of such files lies beside a text model's
    gguf_tokenizer  the tokenizer in it, as a tokenizer.json
    gguf_adapter    a LoRA adapter in such a file
    adapters        LoRA adapters, unmerged: a stored tensor, and what an adapter adds to it
"""
