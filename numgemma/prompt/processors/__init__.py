"""The processors of Transformers, each as a record: how it reads its settings, pictures, clips and recordings.

In reading order:

    record   what prompts ask of a processor
    gemma4   patches of pictures, at a budget of soft tokens; log-mel frames
    unified  12B's, which has no towers: squares of raw pixels, frames of samples
    embedding  EmbeddingGemma 2's: as gemma4, but for clips
    gemma3n  pictures of one size, log-mel frames of another kind; always as many soft tokens
"""

from numgemma.prompt.processors import embedding, gemma3n, gemma4, unified
from numgemma.prompt.processors.record import Marks, Processor, ProcessorClass

CLASSES = {cls.name: cls for cls in (gemma4.CLASS, unified.CLASS, embedding.CLASS, gemma3n.CLASS)}

__all__ = ["CLASSES", "Marks", "Processor", "ProcessorClass"]
