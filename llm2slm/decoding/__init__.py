"""Decoding: a state, forward passes of the SLM that advance it, the choice of the next token, and the loop over them.

`loop.LoopDecoder` gives what transformers' `generate` gives, token by token, at less cost per step; beam search and
settings that it lacks are computed by `generate` itself over the same passes (`steps_model`).
"""
