"""Tokenizers: training and loading, prompts, alignment, added tokens, cut vocabularies, round trips."""
