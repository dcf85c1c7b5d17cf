"""The commands: one module per verb, whose `run` takes a typed configuration and a run directory."""

from __future__ import annotations

import logging
import sys
import warnings

EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen LLM
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # steps count over all epochs
    # the module and `GenerationQuality` reduce these values over all processes before they log them: the sums of the
    # losses by torchmetrics, the texts by gathering; sync_dist=True would average equal values once more
    r"It is recommended to use `self\.log\('val/",
    r"FSDP2-wrapped module \(FSDP\w*T5Block\) returned a view tensor",  # see below
)
"""Beginnings of warnings of Lightning and torch that do not apply to runs of this package.

FSDP2 warns that an in-place operation on an output of a block would lose its hook, and with it gradients. The output is
the relative position bias of T5 (permuted from an embedding), which the blocks pass on; transformers adds it to scores
and never changes it. `tests/training/test_sharding.py` compares losses and weights with those of one process."""

MASK = "We strongly recommend passing in an `attention_mask`"
"""Beginning of a warning of transformers: its `generate` omits a mask of ones only, and its models then warn if the
last token is a pad, as in every finished response of a batch."""


def silence_libraries() -> None:
    """Disables log messages and progress bars of libraries; their other warnings stay.

    Affects libraries that are already imported: call it after the imports of the command.
    """
    if "transformers" in sys.modules:
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        silent = are_progress_bars_disabled()
        disable_progress_bar()  # of reading weights from disk
        if not silent:
            enable_progress_bars()  # of downloads, which the call above disabled too
    for name in ("lightning.pytorch", "lightning.fabric"):  # each process reports its connection by the second one
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("transformers.modeling_utils").addFilter(_not_about_masks)
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # it also raises what it logs
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # each of five attempts to reach the Hub
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message)


def _not_about_masks(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(MASK)
