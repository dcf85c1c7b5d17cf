"""Texts to batches under one or two tokenizers: token ids, masks, labels, alignment; over-long texts are counted.

An example is tokenized once (`encode`); encoded rows are padded into a `Batch` when called. Masks come from lengths and
never from token ids, so a pad token that equals eos loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2slm.data.align import Spans, alignment
from llm2slm.types import IGNORE_INDEX, Batch, Example, Overlong, UserError

PROMPT_END = "\n"
"""Ends the prompt of a decoder-only writer whose tokenizer adds nothing there: without a mark, the model could not tell
whether the prompt or the answer goes on."""

FOR_ROWS = (
    "raise data.max_prompt_tokens or data.max_response_tokens (models with positions have limits of their own), or set "
    "data.overlong=truncate or drop"
)
FOR_TEXTS = "shorten it, or set overlong=truncate (data.overlong where a whole corpus is read)"


@dataclass(frozen=True)
class Encoded:
    """One tokenized example. `slm` and `llm` are the prompt's token ids, `response` the target's with eos.

    `llm` is None where there is no LLM, or where it shares the SLM's tokenizer. The spans are there for alignment.
    """

    index: int
    slm: list[int]
    llm: list[int] | None
    response: list[int]
    slm_spans: Spans | None = None
    llm_spans: Spans | None = None

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt under the tokenizer that makes it longer."""
        return max(len(self.slm), len(self.llm or ()))


class Collator:
    """Both tokenizers, and what it takes to make batches with them.

    Args:
        slm_tokenizer: the writer's; prompts and responses.
        llm_tokenizer: the reader's; None without an LLM; the same object where the two are shared.
        align: give `Batch.align_BQP` (two tokenizers only).
        llm_prompts: the writer reads prompts as the reader's tokens; its own tokenizer is for responses only.
        decoder_only: the writer is, and reads the prompt itself: pad its prompts on the left (a reader with a tokenizer
            of its own always has them padded on the right, where absolute positions stay right), and mark the
            prompt's end.
        max_prompt_tokens: of either tokenizer, special tokens included.
        max_response_tokens: eos included.
        overlong: error, truncate or drop. Counted in `counts` ("prompt", "response") in any case.

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
        decoder_only: bool = False,
        max_prompt_tokens: int = 512,
        max_response_tokens: int = 256,
        overlong: Overlong = Overlong.error,
    ) -> None:
        self.slm_tokenizer = slm_tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.shared = llm_tokenizer is slm_tokenizer
        self.prompt_tokenizer = llm_tokenizer if llm_prompts else slm_tokenizer
        self.one_prompt = llm_tokenizer is self.prompt_tokenizer  # reader and writer get the same token ids
        self.align = align and llm_tokenizer is not None and not self.one_prompt
        self.decoder_only = decoder_only
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.overlong = overlong
        self.counts: Counter[str] = Counter()
        self.pad_id = _pad_id(self.prompt_tokenizer)
        self._llm_pad_id = self.pad_id if llm_tokenizer is None else _pad_id(llm_tokenizer)
        self.marks_end = decoder_only and not _final_special_tokens(self.prompt_tokenizer)
        if self.align and not (slm_tokenizer.is_fast and llm_tokenizer.is_fast):
            raise UserError("model.tokenizers=offsets needs two fast tokenizers (each with a tokenizer.json)")

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

    def save(self, folder: Path) -> None:
        """Writes the writer's tokenizer into a folder, the reader's (where it is another) into its `llm_tokenizer/`."""
        self.slm_tokenizer.save_pretrained(folder)
        if self.llm_tokenizer is not None and not self.shared:
            self.llm_tokenizer.save_pretrained(Path(folder) / "llm_tokenizer")

    def encode(self, examples: Sequence[Example], place: str = "") -> list[Encoded]:
        """Tokenizes examples all at once, which fast tokenizers do in parallel; in order, dropped rows left out.

        Args:
            place: where the rows are from, for a complaint, as "train.jsonl, ".

        Raises:
            UserError: one is over-long and that is an error, or the tokenizer has no eos.
        """
        if not examples:  # transformers' tokenizers take no empty list
            return []
        responses = self._responses([example.target for example in examples])
        prompts = [(example.index, example.prompt) for example in examples]
        rows = self._encoded(prompts, responses)
        fitting = (self._fitted(row, f"{place}row {row.index} (from 0)", self.overlong, FOR_ROWS) for row in rows)
        return [row for row in fitting if row is not None]

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        """Pads encoded rows into a batch with labels."""
        batch = self._prompts(rows)
        labels_BT, _ = _padded([row.response for row in rows], IGNORE_INDEX, left=False)
        return Batch(
            batch.slm_ids_BQ,
            batch.slm_mask_BQ,
            batch.llm_ids_BP,
            batch.llm_mask_BP,
            batch.align_BQP,
            labels_BT,
            tuple(row.index for row in rows),
        )

    def batch_of_texts(self, texts: Sequence[str]) -> Batch:
        """Prompts (prefix included) as a batch to generate from, one row a text, in order; no labels.

        Raises:
            UserError: no texts, or one is over-long (with overlong=drop too: each text is owed an answer).
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

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The texts of response ids, each up to its first eos, special tokens and `IGNORE_INDEX` left out."""
        eos = self.slm_tokenizer.eos_token_id
        texts = []
        for row in ids_BT.tolist():
            end = row.index(eos) if eos in row else len(row)
            ids = [token for token in row[:end] if token != IGNORE_INDEX]
            texts.append(self.slm_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return texts

    def _encoded(self, prompts: Sequence[tuple[int, str]], responses: Sequence[list[int]]) -> list[Encoded]:
        """Rows from prompts (each with its index) and the ids of their responses."""
        slm = self._tokenized(self.prompt_tokenizer, prompts)
        second = self.llm_tokenizer is not None and not self.one_prompt
        llm = self._tokenized(self.llm_tokenizer, prompts) if second else [(None, None)] * len(prompts)
        return [
            Encoded(index, slm_ids, llm_ids, response, slm_spans, llm_spans)
            for (index, _), (slm_ids, slm_spans), (llm_ids, llm_spans), response in zip(
                prompts, slm, llm, responses, strict=True
            )
        ]

    def _tokenized(self, tokenizer: Any, prompts: Sequence[tuple[int, str]]) -> list[tuple[list[int], Spans | None]]:
        texts = [text + PROMPT_END if self.marks_end else text for _, text in prompts]
        found = tokenizer(
            texts,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=self.align,
            return_special_tokens_mask=self.align,
            verbose=False,
        )
        rows: list[list[int]] = found["input_ids"]
        for (index, _), ids in zip(prompts, rows, strict=True):
            if not ids:  # an empty prompt, no special token: there must be a position to attend to
                raise UserError(f"row {index}: its prompt has no token at all; give it a text, or set task.prefix")
        if not self.align:
            return [(ids, None) for ids in rows]
        spans = map(Spans.of, found["offset_mapping"], found["special_tokens_mask"])
        return list(zip(rows, spans, strict=True))

    def _responses(self, texts: list[str]) -> list[list[int]]:
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        rows: list[list[int]] = self.slm_tokenizer(texts, add_special_tokens=False, **only_ids)["input_ids"]
        return [[*ids, self.eos_id] for ids in rows]

    def _fitted(self, row: Encoded, name: str, overlong: Overlong, remedy: str) -> Encoded | None:
        """The row where it fits; else counted, and refused, truncated or dropped (None)."""
        over = self._over(row)
        self.counts.update(over)
        if not over:
            return row
        if overlong is Overlong.error:
            raise UserError(f"{name}: {self._complaint(row, over)}; {remedy}")
        return None if overlong is Overlong.drop else self._truncated(row)

    def _over(self, row: Encoded) -> list[str]:
        prompt, response = row.prompt_tokens > self.max_prompt_tokens, len(row.response) > self.max_response_tokens
        return ["prompt"] * prompt + ["response"] * response

    def _complaint(self, row: Encoded, over: Sequence[str]) -> str:
        found = []
        if "prompt" in over:
            tokens = f"{len(row.slm)}" if row.llm is None else f"{len(row.slm)} (SLM) and {len(row.llm)} (LLM)"
            found.append(f"its prompt has {tokens} tokens, at most {self.max_prompt_tokens} are allowed")
        if "response" in over:
            found.append(f"its response has {len(row.response)}, at most {self.max_response_tokens} are allowed")
        return ", and ".join(found)

    def _truncated(self, row: Encoded) -> Encoded:
        """Cut to size, from the end of the text; the last token (eos, final special token, end mark) stays."""
        limit, response = self.max_prompt_tokens, row.response
        if len(response) > self.max_response_tokens:
            response = [*response[: self.max_response_tokens - 1], response[-1]]
        slm, slm_spans = self._shortened(self.prompt_tokenizer, row.slm, row.slm_spans, limit)
        llm, llm_spans = row.llm, row.llm_spans
        if llm is not None:
            llm, llm_spans = self._shortened(self.llm_tokenizer, llm, llm_spans, limit)
        return Encoded(row.index, slm, llm, response, slm_spans, llm_spans)

    def _shortened(
        self, tokenizer: Any, ids: list[int], spans: Spans | None, limit: int
    ) -> tuple[list[int], Spans | None]:
        if len(ids) <= limit:
            return ids, spans
        tail = max(_final_special_tokens(tokenizer), int(self.marks_end))
        head = max(limit - tail, 0)
        keep = [*range(head), *range(len(ids) - (limit - head), len(ids))]
        return [ids[i] for i in keep], None if spans is None else spans.take(keep)

    def _prompts(self, rows: Sequence[Encoded]) -> Batch:
        left = self.decoder_only
        slm_ids_BQ, slm_mask_BQ = _padded([row.slm for row in rows], self.pad_id, left)
        if self.llm_tokenizer is None:
            return Batch(slm_ids_BQ, slm_mask_BQ)
        if self.one_prompt:
            return Batch(slm_ids_BQ, slm_mask_BQ, slm_ids_BQ, slm_mask_BQ)
        llm_ids_BP, llm_mask_BP = _padded([row.llm or [] for row in rows], self._llm_pad_id, left=False)
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


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has neither a pad nor an eos token; set one")


def _final_special_tokens(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind every text."""
    with_special = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    for behind in range(len(with_special) - len(plain) + 1):
        end = len(with_special) - behind
        if with_special[end - len(plain) : end] == plain:
            return behind
    return 0


def _padded(rows: Sequence[list[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 at real tokens), both int64, of the longest row's width."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for b, row in enumerate(rows):
        start = width - len(row) if left else 0
        ids[b, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[b, start : start + len(row)] = 1
    return ids, mask
