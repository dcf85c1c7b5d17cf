"""The collator: tokenizes examples with one or two tokenizers and makes padded batches; counts over-long texts.

An example is tokenized once (`encode`); a call pads encoded rows into a `Batch` with token ids, masks, labels and
alignment. Masks are derived from lengths, not from token ids, so the pad token may be the eos token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

from llm2slm.data.padding import padded
from llm2slm.data.tokenization.align import Spans, alignment
from llm2slm.data.tokenization.last_token import LastToken
from llm2slm.data.tokenization.plain_text import PlainText
from llm2slm.data.tokenization.prompts import (
    PROMPT_END,
    Frame,
    PromptTokenizer,
    content_of,
    final_special_tokens,
    pad_id,
)
from llm2slm.types import IGNORE_INDEX, Batch, Example, Overlong, UserError

LLM_TOKENIZER = "llm_tokenizer"
"""Subfolder of the LLM's tokenizer in the folder of the SLM's."""

FOR_ROWS = (
    "raise data.max_prompt_tokens or data.max_response_tokens (both share the model's positions: a lower limit of one "
    "leaves more for the other), or set data.overlong=truncate or drop"
)
FOR_TEXTS = "shorten it, or set overlong=truncate (data.overlong where a whole corpus is read)"


@dataclass(frozen=True)
class Encoded:
    """One tokenized example: token ids of the prompt for `slm` and `llm`, and of the target with eos (`response`).

    `llm` is None without an LLM, or if LLM and SLM get the same ids. The spans are present only for alignment.
    `teacher` has the prompt's token ids for a teacher. `lost`: bits of the texts that are not recovered from their ids
    (`round_trip.TEXTS`), if this was checked.
    """

    index: int
    slm: list[int]
    llm: list[int] | None
    response: list[int]
    slm_spans: Spans | None = None
    llm_spans: Spans | None = None
    teacher: Encoded | None = None
    lost: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, the maximum over both tokenizers."""
        return max(len(self.slm), len(self.llm or ()))


class Collator:
    """Both tokenizers and the settings of batches.

    Args:
        slm_tokenizer: of the SLM, for prompts and responses.
        llm_tokenizer: of the LLM, for prompts; None without an LLM; the same object if both models share it.
        align: compute `Batch.align_BQP` if LLM and SLM get different tokens.
        llm_prompts: the SLM gets prompts in the LLM's tokens; `slm_tokenizer` is for responses only.
        last_token: the SLM gets only the last token of the LLM's prompt, in the SLM's vocabulary (`LastToken`).
        llm_frame: text around the prompt for the LLM.
        decoder_only: the SLM is decoder-only and gets the prompt's tokens: pad its prompts on the left and add a mark
            at the prompt's end. Prompts of a separate LLM tokenizer are always padded on the right, which keeps
            absolute positions.
        max_prompt_tokens: for each tokenizer, including special tokens.
        max_response_tokens: including eos.
        overlong: error, truncate, drop or split; over-long texts are counted in `counts` ("prompt", "response").

    Attributes:
        teacher: makes the prompts of `Batch.teacher` (see `with_teacher`).

    Raises:
        UserError: a tokenizer has neither a pad nor an eos token, or alignment is needed and a tokenizer is slow.
    """

    def __init__(
        self,
        slm_tokenizer: Any,
        llm_tokenizer: Any = None,
        *,
        align: bool = False,
        llm_prompts: bool = False,
        last_token: bool = False,
        llm_frame: Frame | None = None,
        decoder_only: bool = False,
        max_prompt_tokens: int = 512,
        max_response_tokens: int = 256,
        overlong: Overlong = Overlong.error,
    ) -> None:
        self.slm_tokenizer = slm_tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.shared = llm_tokenizer is slm_tokenizer
        framed = llm_frame is not None and llm_frame != Frame()
        prompts = llm_tokenizer if llm_prompts or last_token else slm_tokenizer
        one = llm_tokenizer is prompts and (llm_prompts or last_token or not framed)  # the prompt is tokenized once
        self.last_token = LastToken(llm_tokenizer, slm_tokenizer) if last_token else None
        self.one_prompt = one and not last_token  # LLM and SLM get the same token ids
        self.align = align and llm_tokenizer is not None and not self.one_prompt
        self.decoder_only = decoder_only
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.overlong = overlong
        self.counts: Counter[str] = Counter()
        self.teacher: Collator | None = None
        if self.align and not (slm_tokenizer.is_fast and llm_tokenizer.is_fast):
            raise UserError("model.tokenizers=offsets needs two fast tokenizers (each with a tokenizer.json)")
        ends = bool(llm_frame is not None and llm_frame.after)  # the frame marks the prompt's end
        slm_frame = llm_frame if one or llm_tokenizer is None else None
        self.marks_end = decoder_only and not final_special_tokens(prompts) and not (ends and slm_frame is not None)
        mark = PROMPT_END if self.marks_end else ""
        self.slm_prompts = PromptTokenizer(prompts, slm_frame, mark, self.align)
        self.llm_prompts = self.slm_prompts
        if llm_tokenizer is not None and not one:
            self.llm_prompts = PromptTokenizer(llm_tokenizer, llm_frame, "" if ends else mark, self.align)
        self._target_text = PlainText(slm_tokenizer, special_tokens=False)

    @property
    def pad_id(self) -> int:
        """Padding id of the SLM's prompts."""
        return self.slm_prompts.pad_id if self.last_token is None else pad_id(self.slm_tokenizer)

    @property
    def eos_id(self) -> int:
        """The last id of every response.

        Raises:
            UserError: the SLM's tokenizer has no eos token.
        """
        eos: int | None = self.slm_tokenizer.eos_token_id
        if eos is None:
            raise UserError(f"tokenizer {self.slm_tokenizer.name_or_path!r} has no eos token to end responses; set one")
        return eos

    def with_teacher(self, teacher: Collator) -> Collator:
        """A copy whose batches also hold the prompts for a teacher's SLM, which scores the labels.

        A prompt that exceeds the limit of either is over-long. The teacher has no effect on the assignment to batches.
        """
        copied = copy(self)
        copied.counts, copied.teacher = Counter(), teacher
        return copied

    def save(self, folder: Path) -> None:
        """Saves the SLM's tokenizer to a folder, and the LLM's, if different, to its subfolder `LLM_TOKENIZER`."""
        self.slm_tokenizer.save_pretrained(folder)
        if self.llm_tokenizer is not None and not self.shared:
            self.llm_tokenizer.save_pretrained(Path(folder) / LLM_TOKENIZER)

    def encode(self, examples: Sequence[Example], origin: str = "") -> list[Encoded]:
        """Tokenizes examples in one call, in parallel with fast tokenizers. The rows in order, without dropped ones.

        Args:
            origin: origin of the rows in messages, for example "train.jsonl, ".

        Raises:
            UserError: a row is over-long with overlong=error, or the tokenizer has no eos token.
        """
        return self.fitted(self.tokenized(examples), origin)

    def tokenized(self, examples: Sequence[Example]) -> list[Encoded]:
        """One row for each example, of any length.

        Raises:
            UserError: the tokenizer has no eos token, or a prompt has no token.
        """
        if not examples:  # transformers' tokenizers reject an empty list
            return []
        responses = self._responses([example.target for example in examples])
        prompts = [(example.index, example.prompt) for example in examples]
        rows = self._encoded(prompts, responses)
        if self.teacher is None:
            return rows
        teacher_rows = self.teacher._encoded(prompts, [[] for _ in prompts])
        return [replace(row, teacher=prompt) for row, prompt in zip(rows, teacher_rows, strict=True)]

    def fitted(self, rows: Sequence[Encoded], origin: str = "") -> list[Encoded]:
        """The rows within the limits, in order; over-long rows are counted, and truncated, dropped, or split.

        Raises:
            UserError: a row is over-long with overlong=error.
        """
        fitting = (self._fitted(row, f"{origin}row {row.index} (from 0)", self.overlong, FOR_ROWS) for row in rows)
        return [piece for row in fitting if row is not None for piece in self._pieces(row)]

    def too_long(self, rows: Sequence[Encoded], origin: str = "") -> str | None:
        """Counts the over-long rows; returns a message on the first one, None if there is none."""
        message = None
        for row in rows:
            self.counts.update(over := self._over(row))
            if over and message is None:
                message = f"{origin}row {row.index} (from 0): {self._message(row, over)}"
        return message

    def fingerprint(self) -> list[Any] | None:
        """All that determines the result of `tokenized`, as plain values; None if a tokenizer cannot be serialized."""
        sides = [prompts.fingerprint() for prompts in (self.slm_prompts, self.llm_prompts)]
        responses = content_of(self.slm_tokenizer)
        if responses is None or None in sides:
            return None
        second = self.llm_tokenizer is not None and not self.one_prompt
        settings = [*sides, responses, self.eos_id, second, tokenizers.__version__, transformers.__version__]
        settings += [] if self.last_token is None else [content_of(self.slm_tokenizer), "last_token"]
        if self.teacher is None:
            return settings
        teachers = self.teacher.slm_prompts.fingerprint()
        return None if teachers is None else [*settings, teachers]

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        """Pads encoded rows into a batch with labels, and with the teacher's prompts if the rows have any."""
        batch = self._prompts(rows)
        labels_BT, _ = padded([row.response for row in rows], IGNORE_INDEX)
        teacher, prompts = None, [row.teacher for row in rows if row.teacher is not None]
        if self.teacher is not None and prompts:
            teacher = replace(self.teacher._prompts(prompts), labels_BT=labels_BT)
        return Batch(
            batch.slm_ids_BQ,
            batch.slm_mask_BQ,
            batch.llm_ids_BP,
            batch.llm_mask_BP,
            batch.align_BQP,
            labels_BT,
            tuple(row.index for row in rows),
            teacher,
        )

    def batch_of_texts(self, texts: Sequence[str]) -> Batch:
        """A batch of prompts (prefix included) for generation, one row for each text, in order; no labels.

        Raises:
            UserError: no texts, or one is over-long (also with overlong=drop: every input needs an answer).
        """
        if not texts:
            raise UserError("no text: give at least one")
        overlong = Overlong.truncate if self.overlong is Overlong.truncate else Overlong.error
        rows = self._encoded(list(enumerate(texts)), [[] for _ in texts])
        fitting = (self._fitted(row, f"text {row.index}", overlong, FOR_TEXTS) for row in rows)
        return self._prompts([row for row in fitting if row is not None])

    def decode(self, ids_BT: Tensor | Sequence[Any]) -> list[str]:
        """The texts of response ids (a tensor, an array, or rows), each up to its first eos.

        Special tokens and `IGNORE_INDEX` are skipped.
        """
        eos = self.slm_tokenizer.eos_token_id
        texts = []
        rows = ids_BT.tolist() if hasattr(ids_BT, "tolist") else [[int(token) for token in row] for row in ids_BT]
        for row in rows:
            end = row.index(eos) if eos in row else len(row)
            ids = [token for token in row[:end] if token != IGNORE_INDEX]
            texts.append(self.slm_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return texts

    def _encoded(self, prompts: Sequence[tuple[int, str]], responses: Sequence[list[int]]) -> list[Encoded]:
        """Rows from prompts (index and text) and the token ids of their responses."""
        texts = [text for _, text in prompts]
        slm = self.slm_prompts(texts)
        second = self.llm_tokenizer is not None and not self.one_prompt
        llm: Sequence[tuple[list[int] | None, Spans | None]] = [(None, None)] * len(prompts)
        if self.last_token is not None:
            slm, llm = [(self.last_token(ids), None) for ids, _ in slm], slm
        elif second:
            llm = self.llm_prompts(texts)
        rows = [
            Encoded(index, slm_ids, llm_ids, response, slm_spans, llm_spans)
            for (index, _), (slm_ids, slm_spans), (llm_ids, llm_spans), response in zip(
                prompts, slm, llm, responses, strict=True
            )
        ]
        for row in rows:
            if not row.slm or row.llm == []:  # attention needs at least one position
                raise UserError(f"row {row.index}: its prompt has no token; give it a text, or set task.prefix")
        return rows

    def _responses(self, texts: list[str]) -> list[list[int]]:
        return [[*ids, self.eos_id] for ids, _ in self._target_text(texts)]

    def _fitted(self, row: Encoded, name: str, overlong: Overlong, remedy: str) -> Encoded | None:
        """The row if it is within the limits; else it is counted and raises, is truncated, or is dropped (None)."""
        over = self._over(row)
        self.counts.update(over)
        if not over:
            return row
        if overlong is Overlong.split and "prompt" not in over:
            return row
        if overlong in (Overlong.error, Overlong.split):
            raise UserError(f"{name}: {self._message(row, over)}; {remedy}")
        return None if overlong is Overlong.drop else self._truncated(row)

    def _pieces(self, row: Encoded) -> list[Encoded]:
        """Splits a row with an over-long response into rows with the same prompt and a piece of the response each; the
        last piece ends with eos."""
        size, response = self.max_response_tokens, row.response
        if len(response) <= size:
            return [row]
        pieces = [response[start : start + size] for start in range(0, len(response), size)]
        return [replace(row, response=piece, lost=row.lost * (n == 0)) for n, piece in enumerate(pieces)]

    def _over(self, row: Encoded) -> list[str]:
        prompt = row.prompt_tokens > self.max_prompt_tokens or self._exceeds_teacher(row)
        return ["prompt"] * prompt + ["response"] * (len(row.response) > self.max_response_tokens)

    def _exceeds_teacher(self, row: Encoded) -> bool:
        if self.teacher is None or row.teacher is None:
            return False
        return row.teacher.prompt_tokens > self.teacher.max_prompt_tokens

    def _message(self, row: Encoded, over: Sequence[str]) -> str:
        found = []
        if row.prompt_tokens > self.max_prompt_tokens:
            tokens = f"{len(row.slm)}" if row.llm is None else f"{len(row.slm)} (SLM) and {len(row.llm)} (LLM)"
            found.append(f"its prompt has {tokens} tokens, at most {self.max_prompt_tokens} are allowed")
        if self.teacher is not None and row.teacher is not None and self._exceeds_teacher(row):
            tokens, limit = f"{row.teacher.prompt_tokens}", self.teacher.max_prompt_tokens
            found.append(f"its prompt has {tokens} tokens with the teacher's tokenizer, at most {limit} are allowed")
        if "response" in over:
            found.append(f"its response has {len(row.response)}, at most {self.max_response_tokens} are allowed")
        return ", and ".join(found)

    def _truncated(self, row: Encoded) -> Encoded:
        """The row truncated at the end of the texts; the last token (eos, final special token, end mark) remains."""
        limit, response = self.max_prompt_tokens, row.response
        if len(response) > self.max_response_tokens:
            response = [*response[: self.max_response_tokens - 1], response[-1]]
        slm, slm_spans = self.slm_prompts.shortened(row.slm, row.slm_spans, limit)
        llm, llm_spans = row.llm, row.llm_spans
        if llm is not None:
            llm, llm_spans = self.llm_prompts.shortened(llm, llm_spans, limit)
        if self.last_token is not None and llm is not None:
            slm = self.last_token(llm)
        teacher = row.teacher
        if self.teacher is not None and teacher is not None:
            teacher = self.teacher._truncated(teacher)
        return Encoded(row.index, slm, llm, response, slm_spans, llm_spans, teacher, row.lost)

    def _prompts(self, rows: Sequence[Encoded]) -> Batch:
        left = self.decoder_only
        slm_ids_BQ, slm_mask_BQ = padded([row.slm for row in rows], self.pad_id, left)
        if self.llm_tokenizer is None:
            return Batch(slm_ids_BQ, slm_mask_BQ)
        if self.one_prompt:
            return Batch(slm_ids_BQ, slm_mask_BQ, slm_ids_BQ, slm_mask_BQ)
        llm_ids_BP, llm_mask_BP = padded([row.llm or [] for row in rows], self.llm_prompts.pad_id)
        align_BQP = None
        if self.align:
            q_max, p_max = slm_ids_BQ.shape[1], llm_ids_BP.shape[1]
            align_BQP = torch.zeros(len(rows), q_max, p_max)
            for b, row in enumerate(rows):
                assert row.slm_spans is not None and row.llm_spans is not None
                align_QP = alignment(row.slm_spans, row.llm_spans)
                q, p = align_QP.shape
                q0 = q_max - q if left else 0
                align_BQP[b, q0 : q0 + q, :p] = align_QP
        return Batch(slm_ids_BQ, slm_mask_BQ, llm_ids_BP, llm_mask_BP, align_BQP)
