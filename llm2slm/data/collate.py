"""Texts to batches under one or two tokenizers: token ids, masks, labels, alignment; over-long texts are counted.

An example is tokenized once (`encode`); encoded rows are padded into a `Batch` when called. Masks come from lengths and
never from token ids, so a pad token that equals eos loses nothing.
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
"""Folder of the reader's tokenizer, beside the writer's."""

FOR_ROWS = (
    "raise data.max_prompt_tokens or data.max_response_tokens (models with positions have limits of their own), or set "
    "data.overlong=truncate or drop"
)
FOR_TEXTS = "shorten it, or set overlong=truncate (data.overlong where a whole corpus is read)"


@dataclass(frozen=True)
class Encoded:
    """One tokenized example. `slm` and `llm` are the prompt's token ids, `response` the target's with eos.

    `llm` is None where there is no LLM, or where it shares the SLM's tokenizer. The spans are there for alignment.
    `teacher` is the prompt alone, as a teacher reads it. `lost`: texts that are not read back from their ids
    (`round_trip.TEXTS`), where that was looked at.
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
        """Length of the prompt under the tokenizer that makes it longer."""
        return max(len(self.slm), len(self.llm or ()))


class Collator:
    """Both tokenizers, and what it takes to make batches with them.

    Args:
        slm_tokenizer: the writer's; prompts and responses.
        llm_tokenizer: the reader's; None without an LLM; the same object where the two are shared.
        align: give `Batch.align_BQP` (where reader and writer get different tokens).
        llm_prompts: the writer reads prompts as the reader's tokens; its own tokenizer is for responses only.
        last_token: the SLM reads the last token of the LLM's prompt alone, as its own tokenizer has it (`LastToken`).
        llm_frame: what stands around a prompt when the LLM reads it.
        decoder_only: the writer is, and reads the prompt itself: pad its prompts on the left (a reader with a tokenizer
            of its own always has them padded on the right, where absolute positions stay right), and mark the
            prompt's end.
        max_prompt_tokens: of either tokenizer, special tokens included.
        max_response_tokens: eos included.
        overlong: error, truncate, drop or split. Counted in `counts` ("prompt", "response") in any case.

    Attributes:
        teacher: makes the prompts of `Batch.teacher` (see `taught_by`).

    Raises:
        UserError: a tokenizer has neither pad nor eos, or is not fast where alignment needs offsets.
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
        one = llm_tokenizer is prompts and (llm_prompts or last_token or not framed)  # one tokenization of the prompt
        self.last_token = LastToken(llm_tokenizer, slm_tokenizer) if last_token else None
        # LLM and SLM get the same token ids
        self.one_prompt = one and not last_token
        self.align = align and llm_tokenizer is not None and not self.one_prompt
        self.decoder_only = decoder_only
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.overlong = overlong
        self.counts: Counter[str] = Counter()
        self.teacher: Collator | None = None
        if self.align and not (slm_tokenizer.is_fast and llm_tokenizer.is_fast):
            raise UserError("model.tokenizers=offsets needs two fast tokenizers (each with a tokenizer.json)")
        ends = bool(llm_frame is not None and llm_frame.after)  # then the frame itself marks the prompt's end
        own_frame = llm_frame if one or llm_tokenizer is None else None
        self.marks_end = decoder_only and not final_special_tokens(prompts) and not (ends and own_frame is not None)
        mark = PROMPT_END if self.marks_end else ""
        self.slm_prompts = PromptTokenizer(prompts, own_frame, mark, self.align)
        self.llm_prompts = self.slm_prompts
        if llm_tokenizer is not None and not one:
            self.llm_prompts = PromptTokenizer(llm_tokenizer, llm_frame, "" if ends else mark, self.align)
        self._target_text = PlainText(slm_tokenizer, special_tokens=False)

    @property
    def pad_id(self) -> int:
        """Pads the writer's prompts."""
        return self.slm_prompts.pad_id if self.last_token is None else pad_id(self.slm_tokenizer)

    @property
    def eos_id(self) -> int:
        """Ends every response.

        Raises:
            UserError: the writer's tokenizer has none.
        """
        eos: int | None = self.slm_tokenizer.eos_token_id
        if eos is None:
            raise UserError(
                f"tokenizer {self.slm_tokenizer.name_or_path!r} has no eos token, so no response could end; set one"
            )
        return eos

    def taught_by(self, teacher: Collator) -> Collator:
        """The same, whose batches also hold the prompts as another system's writer reads them, to score the labels.

        A prompt that is too long for either is over-long. How rows make batches does not depend on the teacher.
        """
        taught = copy(self)
        taught.counts, taught.teacher = Counter(), teacher
        return taught

    def save(self, folder: Path) -> None:
        """Writes the writer's tokenizer into a folder, the reader's (where it is another) into a folder in it."""
        self.slm_tokenizer.save_pretrained(folder)
        if self.llm_tokenizer is not None and not self.shared:
            self.llm_tokenizer.save_pretrained(Path(folder) / LLM_TOKENIZER)

    def encode(self, examples: Sequence[Example], place: str = "") -> list[Encoded]:
        """Tokenizes examples all at once, which fast tokenizers do in parallel; in order, dropped rows left out.

        Args:
            place: where the rows are from, for a complaint, as "train.jsonl, ".

        Raises:
            UserError: one is over-long and that is an error, or the tokenizer has no eos.
        """
        return self.fitted(self.tokenized(examples), place)

    def tokenized(self, examples: Sequence[Example]) -> list[Encoded]:
        """One row for each example, of whatever length.

        Raises:
            UserError: the tokenizer has no eos, or makes no token at all of a prompt.
        """
        if not examples:  # transformers' tokenizers take no empty list
            return []
        responses = self._responses([example.target for example in examples])
        prompts = [(example.index, example.prompt) for example in examples]
        rows = self._encoded(prompts, responses)
        if self.teacher is None:
            return rows
        read = self.teacher._encoded(prompts, [[] for _ in prompts])
        return [replace(row, teacher=prompt) for row, prompt in zip(rows, read, strict=True)]

    def fitted(self, rows: Sequence[Encoded], place: str = "") -> list[Encoded]:
        """The rows within the limits, in order; those beyond them counted, and cut, left out, or cut into several rows.

        Raises:
            UserError: one is over-long and that is an error.
        """
        fitting = (self._fitted(row, f"{place}row {row.index} (from 0)", self.overlong, FOR_ROWS) for row in rows)
        return [piece for row in fitting if row is not None for piece in self._pieces(row)]

    def too_long(self, rows: Sequence[Encoded], place: str = "") -> str | None:
        """Counts the rows beyond the limits; what is wrong with the first of them, None where there is none."""
        complaint = None
        for row in rows:
            self.counts.update(over := self._over(row))
            if over and complaint is None:
                complaint = f"{place}row {row.index} (from 0): {self._complaint(row, over)}"
        return complaint

    def fingerprint(self) -> list[Any] | None:
        """All that decides what `tokenized` makes of a text, as plain values; None where a tokenizer does not tell."""
        sides = [prompts.fingerprint() for prompts in (self.slm_prompts, self.llm_prompts)]
        responses = content_of(self.slm_tokenizer)
        if responses is None or None in sides:
            return None
        second = self.llm_tokenizer is not None and not self.one_prompt
        own = [*sides, responses, self.eos_id, second, tokenizers.__version__, transformers.__version__]
        own += [] if self.last_token is None else [content_of(self.slm_tokenizer), "last_token"]
        if self.teacher is None:
            return own
        teachers = self.teacher.slm_prompts.fingerprint()
        return None if teachers is None else [*own, teachers]

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        """Pads encoded rows into a batch with labels, and with the teacher's prompts where the rows have such."""
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
        """Prompts (prefix included) as a batch to generate from, one row a text, in order; no labels.

        Raises:
            UserError: no texts, or one is over-long (with overlong=drop too: every input needs an answer).
        """
        if not texts:
            raise UserError("no text to answer: give at least one")
        owed = Overlong.truncate if self.overlong is Overlong.truncate else Overlong.error
        rows = self._encoded(list(enumerate(texts)), [[] for _ in texts])
        fitting = (
            self._fitted(
                row,
                f"text {row.index}",
                owed,
                FOR_TEXTS,
            )
            for row in rows
        )
        return self._prompts([row for row in fitting if row is not None])

    def decode(self, ids_BT: Tensor | Sequence[Any]) -> list[str]:
        """The texts of response ids (a tensor, an array, or rows), each up to its first eos.

        Special tokens and `IGNORE_INDEX` are left out.
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
        """Rows from prompts (each with its index) and the ids of their responses."""
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
            if not row.slm or row.llm == []:  # an empty prompt, no special token: there must be a position to attend to
                raise UserError(f"row {row.index}: its prompt has no token at all; give it a text, or set task.prefix")
        return rows

    def _responses(self, texts: list[str]) -> list[list[int]]:
        return [[*ids, self.eos_id] for ids, _ in self._target_text(texts)]

    def _fitted(self, row: Encoded, name: str, overlong: Overlong, remedy: str) -> Encoded | None:
        """The row where it fits; else counted, and refused, truncated or dropped (None)."""
        over = self._over(row)
        self.counts.update(over)
        if not over:
            return row
        if overlong is Overlong.split and "prompt" not in over:
            return row
        if overlong in (Overlong.error, Overlong.split):
            raise UserError(f"{name}: {self._complaint(row, over)}; {remedy}")
        return None if overlong is Overlong.drop else self._truncated(row)

    def _pieces(self, row: Encoded) -> list[Encoded]:
        """A row whose response is too long as several rows, each with the same prompt and a piece of the response; the
        last one ends with its eos."""
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

    def _complaint(self, row: Encoded, over: Sequence[str]) -> str:
        found = []
        if row.prompt_tokens > self.max_prompt_tokens:
            tokens = f"{len(row.slm)}" if row.llm is None else f"{len(row.slm)} (SLM) and {len(row.llm)} (LLM)"
            found.append(f"its prompt has {tokens} tokens, at most {self.max_prompt_tokens} are allowed")
        if self.teacher is not None and row.teacher is not None and self._exceeds_teacher(row):
            tokens, limit = f"{row.teacher.prompt_tokens}", self.teacher.max_prompt_tokens
            found.append(f"its prompt has {tokens} tokens as the teacher reads it, at most {limit} are allowed")
        if "response" in over:
            found.append(f"its response has {len(row.response)}, at most {self.max_response_tokens} are allowed")
        return ", and ".join(found)

    def _truncated(self, row: Encoded) -> Encoded:
        """Cut to size, from the end of the text; the last token (eos, final special token, end mark) stays."""
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


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right or left to the longest row, and the mask (1 at tokens); int64, of equal shape."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for b, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[b, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[b, start : start + len(row)] = 1
    return ids, mask
