"""`silence_libraries` filters single warnings of transformers and Lightning, and keeps the others."""

from __future__ import annotations

import warnings

import pytest
from command_line import python
from lightning.fabric.utilities.warnings import PossibleUserWarning

from llm2slm.commands import silence_libraries

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


REDUCED = (
    "It is recommended to use `self.log({!r}, ..., sync_dist=True)` when logging on epoch level in distributed setting"
    " to accumulate the metric across devices."
)
"""Of Lightning's `result.py`; the tests of two processes find it if its text changes."""


def test_only_validation_metrics_are_known_to_be_reduced():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence_libraries()
        for name in ("val/loss", "val/bleu", "train/loss", "test/val/loss"):
            warnings.warn(REDUCED.format(name), PossibleUserWarning, stacklevel=1)
    assert [str(each.message) for each in shown] == [REDUCED.format(name) for name in ("train/loss", "test/val/loss")]
