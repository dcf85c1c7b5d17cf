"""One file a verb. Each takes a typed configuration and a run directory.

The order on the page is the order of the run.
"""

from __future__ import annotations

import logging
import sys
import warnings

EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen LLM
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # steps count over all epochs
)
"""Beginnings of Lightning's warnings that say nothing of a run of ours."""

MASK = "We strongly recommend passing in an `attention_mask`"
"""Beginning of a warning of transformers': its `generate` leaves out a mask that is all ones, and its models then miss
it where the last token is a pad, as it is of each answer that has ended."""


def hush() -> None:
    """Keeps the libraries' talk off the terminal, which is for progress, results and mistakes. Their warnings stay.

    Acts on what is imported already: call it once the command's own imports are done.
    """
    if "transformers" in sys.modules:
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        silent = are_progress_bars_disabled()
        disable_progress_bar()  # of reading weights from disk: gone in a moment
        if not silent:
            enable_progress_bars()  # of downloads, which the call above ended as well
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("transformers.modeling_utils").addFilter(_not_of_a_mask)
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # what it logs it raises too
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # each of its five tries to reach the Hub
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message)


def _not_of_a_mask(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(MASK)
