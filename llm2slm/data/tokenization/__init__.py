"""Tokenizers and what is done with them: prompts, alignment, added tokens, cut vocabularies, round trips."""
