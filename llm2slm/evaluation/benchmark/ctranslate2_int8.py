"""The LLM under CTranslate2 with weights in int8, on a CPU, for comparison.

The model is saved, converted by CTranslate2's own converter, and loaded from a temporary folder, which is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llm2slm.decoding.decoder import OneModelDecoder
from llm2slm.types import Batch, UserError, reason_of

if TYPE_CHECKING:
    from llm2slm.decoding.decoder import OnTokens
    from llm2slm.models.hybrid import LLM2SLM

EXTRA = "pip install 'llm-to-slm[ctranslate2]'"


class CTranslate2Decoder(OneModelDecoder):
    """Greedy decoding with a converted copy of a model.

    Args:
        model: an LLM alone of a family that CTranslate2 converts (T5, BART, GPT-2, OPT, Llama, ...).
        threads: of CTranslate2; None: those that torch uses.

    Raises:
        UserError: CTranslate2 is not installed, or cannot convert the model.
    """

    name = "CTranslate2 int8"
    token_by_token = True

    def __init__(self, model: LLM2SLM, threads: int | None = None) -> None:
        try:
            import ctranslate2
        except ImportError:
            raise UserError(f"benchmark.decoders=ctranslate2: needs CTranslate2: {EXTRA}") from None
        self.model = model
        self.tokenizer = _complete(model.collator.slm_tokenizer)
        self.encodes = model.slm.config.is_encoder_decoder
        kind = ctranslate2.Translator if self.encodes else ctranslate2.Generator
        with TemporaryDirectory() as folder:
            source, converted = Path(folder) / "saved", Path(folder) / "converted"
            model.slm.save_pretrained(source)
            self.tokenizer.save_pretrained(source)
            try:
                converter = ctranslate2.converters.TransformersConverter(str(source))
                converter.convert(str(converted), quantization="int8")
                self.engine = kind(str(converted), device="cpu", intra_threads=threads or torch.get_num_threads())
            except (ValueError, RuntimeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"benchmark.decoders=ctranslate2: cannot convert a {model.slm.config.model_type} "
                    f"({reason_of(error)}); leave ctranslate2 out"
                ) from None

    def batch(self, texts: Sequence[str]) -> list[list[str]]:
        """See `Decoder`: the tokens of each prompt."""
        batch: Batch = self.model.collator.batch_of_texts(list(texts))
        rows = zip(batch.slm_ids_BQ.tolist(), batch.slm_mask_BQ.tolist(), strict=True)
        return [
            self.tokenizer.convert_ids_to_tokens([i for i, real in zip(ids, mask, strict=True) if real])
            for ids, mask in rows
        ]

    def generate(
        self,
        batch: list[list[str]],
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        **arguments: Any,
    ) -> Tensor:
        """See `Decoder`; greedy, of equal lengths.

        Raises:
            UserError: another generation than that of a benchmark.
        """
        most, least = arguments.get("max_new_tokens"), arguments.get("min_new_tokens")
        if generation_config is not None or most is None or most != least or arguments.get("do_sample"):
            raise UserError(f"{self.name}: generates greedily a fixed number of tokens only")
        on_step = None if on_tokens is None else _Steps(len(batch), on_tokens)
        common = {"beam_size": 1, "callback": on_step}
        if self.encodes:
            lengths = {"min_decoding_length": most, "max_decoding_length": most, "max_input_length": 0}
            found = self.engine.translate_batch(batch, **common, **lengths)
            rows = [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
        else:
            lengths = {"min_length": most, "max_length": most, "include_prompt_in_result": False}
            found = self.engine.generate_batch(batch, **common, **lengths)
            rows = [result.sequences_ids[0] for result in found]
        if on_step is not None:
            on_step.flush()
        return torch.tensor(rows)


def _complete(tokenizer: Any) -> Any:
    """A copy with the special tokens that the converter writes down; all of them are vocabulary entries already."""
    tokenizer = deepcopy(tokenizer)
    for name in ("bos_token", "unk_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, tokenizer.eos_token)
    return tokenizer


class _Steps:
    """A callback of CTranslate2, which is called for each token of each row, that passes on the tokens of a step.

    A step is complete with the last row, or, where the prompts of a decoder-only model have different lengths, so that
    only some rows are generated, with the first token of the next step.
    """

    def __init__(self, rows: int, on_tokens: OnTokens) -> None:
        self.rows, self.on_tokens = rows, on_tokens
        self.step: dict[int, int] = {}

    def __call__(self, result: Any) -> bool:
        """Adds a token; False: the generation continues."""
        if result.batch_id in self.step:
            self.flush()
        self.step[result.batch_id] = result.token_id
        if len(self.step) == self.rows:
            self.flush()
        return False

    def flush(self) -> None:
        """Passes on what is left."""
        if self.step:
            ids_K1 = torch.tensor(list(self.step.values())).unsqueeze(1)
            self.on_tokens(torch.tensor(list(self.step)), ids_K1, torch.ones(len(self.step), dtype=torch.int64))
            self.step = {}
