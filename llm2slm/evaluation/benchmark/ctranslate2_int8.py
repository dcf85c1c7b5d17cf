"""The LLM under CTranslate2 with weights in int8, on a CPU, for comparison.

The model is saved, converted by CTranslate2's own converter, and loaded from a temporary folder, which is removed.

It runs in a child process, which is idle while other systems are timed. CTranslate2 and torch load the same OpenMP
library: with both in one process there are more OpenMP threads than cores, so that idle threads sleep between short
products instead of waiting actively: torch's steps with int8 weights took 6.8 instead of 2.9 ms (AMD EPYC, 2 cores).
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from importlib.util import find_spec
from multiprocessing.connection import Connection
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
        if find_spec("ctranslate2") is None:
            raise UserError(f"benchmark.decoders=ctranslate2: needs CTranslate2: {EXTRA}")
        self.model = model
        self.tokenizer = _complete(model.collator.slm_tokenizer)
        self.encodes = model.slm.config.is_encoder_decoder
        with TemporaryDirectory() as folder:
            source, converted = Path(folder) / "saved", Path(folder) / "converted"
            model.slm.save_pretrained(source)
            self.tokenizer.save_pretrained(source)
            self.pipe, theirs = multiprocessing.Pipe()
            arguments = str(source), str(converted), self.encodes, threads or torch.get_num_threads(), theirs
            context = multiprocessing.get_context("spawn")
            self.process = context.Process(target=_serve, args=arguments, name="ctranslate2", daemon=True)
            self.process.start()
            theirs.close()
            try:
                reason = self._received()
            except BaseException:
                self.close()
                raise
        if reason is not None:
            self.close()
            raise UserError(
                f"benchmark.decoders=ctranslate2: cannot convert a {model.slm.config.model_type} "
                f"({reason}); leave ctranslate2 out"
            )

    def _received(self) -> Any:
        """The next message of the child process.

        Raises:
            UserError: it has ended.
        """
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise UserError(f"benchmark.decoders=ctranslate2: its process ended with exit code {self.process.exitcode} "
                            "(-9: the system had too little memory); leave ctranslate2 out") from None  # fmt: skip

    def close(self) -> None:
        """Ends the child process; the decoder cannot be used any more."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()

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
        try:
            found = self._answer(batch, most, on_tokens)
        except BaseException:  # messages of this request may be left in the pipe
            self.close()
            raise
        if isinstance(found, Exception):
            raise found
        convert = self.tokenizer.convert_tokens_to_ids
        return torch.tensor([convert(row) for row in found] if self.encodes else found)

    def _answer(self, batch: list[list[str]], tokens: int, on_tokens: OnTokens | None) -> Any:
        """The responses to a batch, or CTranslate2's exception."""
        with suppress(BrokenPipeError, ConnectionResetError):  # the process has ended: `_received` states how
            self.pipe.send((batch, tokens))
        while isinstance(found := self._received(), tuple):
            if on_tokens is not None:
                rows, ids = found
                on_tokens(torch.tensor(rows), torch.tensor(ids).unsqueeze(1), torch.ones(len(ids), dtype=torch.int64))
        return found


def _serve(source: str, converted: str, encodes: bool, threads: int, pipe: Connection) -> None:
    """The child process: converts a saved model, then answers requests until the pipe is closed.

    It sends a text why it cannot, or None; then for each request (prompts as tokens, tokens of a response) pairs of
    rows and ids of their next tokens, and at the end the response of every row (tokens of an encoder-decoder, else
    ids), or the exception.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    try:
        import ctranslate2

        converter = ctranslate2.converters.TransformersConverter(source)
        converter.convert(converted, quantization="int8")
        kind = ctranslate2.Translator if encodes else ctranslate2.Generator
        engine = kind(converted, device="cpu", intra_threads=threads)
    except (ImportError, OSError, TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        with suppress(OSError):
            pipe.send(reason_of(error))
        return
    with suppress(EOFError, OSError):  # the parent has closed the pipe
        _requests(engine, encodes, pipe)


def _requests(engine: Any, encodes: bool, pipe: Connection) -> None:
    """Answers requests, without an end."""
    pipe.send(None)
    while True:
        prompts, tokens = pipe.recv()
        on_step = _Steps(len(prompts), pipe)
        common = {"beam_size": 1, "callback": on_step}
        try:
            if encodes:
                lengths = {"min_decoding_length": tokens, "max_decoding_length": tokens, "max_input_length": 0}
                results = engine.translate_batch(prompts, **common, **lengths)
            else:
                lengths = {"min_length": tokens, "max_length": tokens, "include_prompt_in_result": False}
                results = engine.generate_batch(prompts, **common, **lengths)
        except RuntimeError as error:
            pipe.send(error)
            continue
        on_step.flush()
        pipe.send([result.hypotheses[0] if encodes else result.sequences_ids[0] for result in results])


def _complete(tokenizer: Any) -> Any:
    """A copy with the special tokens that the converter writes down; all of them are vocabulary entries already."""
    tokenizer = deepcopy(tokenizer)
    for name in ("bos_token", "unk_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, tokenizer.eos_token)
    return tokenizer


class _Steps:
    """A callback of CTranslate2, which is called for each token of each row, that sends the tokens of a step.

    A step is complete with the last row, or, where the prompts of a decoder-only model have different lengths, so that
    only some rows are generated, with the first token of the next step.
    """

    def __init__(self, rows: int, pipe: Connection) -> None:
        self.rows, self.pipe = rows, pipe
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
        """Sends what is left."""
        if self.step:
            self.pipe.send((list(self.step), list(self.step.values())))
            self.step = {}
