"""`silence_libraries` filters one warning of transformers, and keeps the others."""

from __future__ import annotations

import pytest
from command_line import python

CODE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from llm2slm.commands import silence_libraries
if SILENCED:
    silence_libraries()
model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, pad_token_id=8, eos_token_id=7))
model(torch.tensor([[1, 8]]))
from transformers.utils import logging
logging.get_logger("transformers.modeling_utils").warning("another")
"""


@pytest.mark.slow
def test_the_warning_about_a_missing_mask_is_filtered():
    loud, quiet = (python("-c", CODE.replace("SILENCED", str(silenced))) for silenced in (False, True))
    assert "We strongly recommend passing in an `attention_mask`" in loud.stderr
    assert "We strongly recommend" not in quiet.stderr
    assert "another" in loud.stderr and "another" in quiet.stderr
