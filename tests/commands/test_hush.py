"""What the libraries say that is not for a user is kept off the terminal, and nothing else."""

from __future__ import annotations

import pytest
from command_line import python

CODE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from llm2slm.commands import hush
if HUSH:
    hush()
model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, pad_token_id=8, eos_token_id=7))
model(torch.tensor([[1, 8]]))
from transformers.utils import logging
logging.get_logger("transformers.modeling_utils").warning("another")
"""


@pytest.mark.slow
def test_a_mask_that_transformers_left_out_itself_is_no_news():
    loud, quiet = (python("-c", CODE.replace("HUSH", str(hushed))) for hushed in (False, True))
    assert "We strongly recommend passing in an `attention_mask`" in loud.stderr
    assert "We strongly recommend" not in quiet.stderr
    assert "another" in loud.stderr and "another" in quiet.stderr
