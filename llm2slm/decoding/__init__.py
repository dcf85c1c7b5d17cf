"""Decoding: a state, forward passes of the SLM that advance it, the choice of the next token, and the loop over them.

`loop.generate` gives what transformers' `generate` gives, token by token, at less cost per step.
"""
