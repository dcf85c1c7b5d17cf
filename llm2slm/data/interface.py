"""The part of `llm2slm.data` that `llm2slm.models` uses; `models` imports no other module of `data`.

A model has a `Collator` (in its processor), which turns texts into batches and token ids into texts. Building, saving
and loading a model loads and compares tokenizers and determines the `Frame` of the LLM's prompts. A `RepsStore` holds
precomputed LLM representations.
"""

from llm2slm.data.collate import LLM_TOKENIZER, Collator
from llm2slm.data.processor import LLM2SLMProcessor
from llm2slm.data.reps.store import RepsStore
from llm2slm.data.tokenization.filled import filled_tokenizer
from llm2slm.data.tokenization.last_token import is_cut
from llm2slm.data.tokenization.prompts import Frame, frame
from llm2slm.data.tokenization.tokenizer import cut_of, first_added, load_tokenizer

__all__ = [
    "LLM_TOKENIZER",
    "Collator",
    "Frame",
    "LLM2SLMProcessor",
    "RepsStore",
    "cut_of",
    "filled_tokenizer",
    "first_added",
    "frame",
    "is_cut",
    "load_tokenizer",
]
