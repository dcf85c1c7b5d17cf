"""BERTScore: similarity of prediction and reference by the contextual embeddings of their tokens.

Zhang et al. 2020: each token is matched greedily with the most similar token of the other text, by cosine. Precision is
the mean over the prediction's tokens, recall the mean over the reference's, and F1 the score. No idf weights and no
baseline rescaling. Special tokens are input to the model, but excluded from the means and, unlike in the authors'
package, from the matching.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm2slm.config import LLMConfig
from llm2slm.data.padding import padded
from llm2slm.data.tokenization.plain_text import PlainText
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.evaluation.metrics.metric import Measured, mean
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.loading.configs import BUILTIN, commit, locate, read_config
from llm2slm.models.loading.pretrained import load_encoder_layers
from llm2slm.progress import progress_bar
from llm2slm.types import UserError

BERTSCORE = "bertscore:"
PAIRS = 32
"""Rows per batch, two texts each."""


@dataclass(frozen=True)
class Named:
    """The model and layer in a metric's name (None: the last layer of an encoder, the middle one of a decoder)."""

    model: str
    layer: int | None


def parse(name: str) -> Named:
    """The parts of bertscore:MODEL[:layer].

    Raises:
        UserError: the name has no model.
    """
    rest = name.removeprefix(BERTSCORE)
    model, _, last = rest.rpartition(":")
    layer = int(last) if last.removeprefix("-").isdecimal() else None
    model = rest if layer is None else model
    if not model:
        raise UserError(f"metric {name!r}: names no model; give bertscore:MODEL[:layer], as bertscore:roberta-large:17")
    return Named(model, layer)


def check(name: str) -> None:
    """Refuses, before anything is loaded or trained, a missing model, a hybrid, or a missing layer.

    Raises:
        UserError: one of these.
    """
    named = parse(name)
    config = read_config(named.model)
    if config.model_type == "llm2slm":
        raise UserError(
            f"metric {name!r}: {named.model} is a hybrid, or has virtual tokens; give a plain model of transformers"
        )
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if named.layer is not None and depth is not None and not -depth - 1 <= named.layer <= depth:
        raise UserError(f"metric {name!r}: {named.model} has layers 0 to {depth} (or -{depth + 1} to -1)")


class BertScore:
    """A scorer with its model, in float32.

    Args:
        name: bertscore:MODEL[:layer]; layers are numbered as in model.llm.layer (0: embeddings, n: output of block n,
            negative: from the end).
        device: of the model.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or it has no such layer.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        named = parse(name)
        path = locate(named.model)
        self.tokenizer: Any = load_tokenizer(path)
        self._encode = PlainText(self.tokenizer)
        config = read_config(named.model)
        encoder = load_encoder_layers(LLMConfig(name=named.model, layer=named.layer), config)
        self.encoder = FrozenEncoder(encoder, named.layer).to(device)
        self.device = device
        self.limit = min(_positions(self.encoder.body), int(self.tokenizer.model_max_length))
        if named.model.startswith(BUILTIN):
            self.named = named.model
        elif Path(path).is_dir():
            self.named = f"{Path(path).name} (a local folder)"
        else:
            self.named = f"{named.model} at {commit(named.model) or 'an unknown commit'}"

    def measure(self, predictions: Sequence[str], references: Sequence[str], *, progress: bool = False) -> Measured:
        """F1 of each prediction with its reference, 0 to 100; 0 where one of them has no tokens.

        Texts with more tokens than the model has positions are truncated; the signature states their number.
        """
        texts = [(self._ids(p), self._ids(r)) for p, r in zip(predictions, references, strict=True)]
        values = [0.0] * len(texts)
        order = sorted((i for i, pair in enumerate(texts) if all(pair)), key=lambda i: -max(map(len, texts[i])))
        with progress_bar(progress) as bar, torch.inference_mode():
            job = bar.add_task("BERTScore", total=len(texts), speed="")
            for start in range(0, len(order), PAIRS):
                rows = order[start : start + PAIRS]
                embeddings = self._embeddings([text for row in rows for text in texts[row]])
                for row in rows:
                    values[row] = greedy_f1(next(embeddings), next(embeddings))
                bar.update(job, advance=len(rows))
        cut = sum(text.cut for pair in texts for text in pair)
        signature = (
            f"BERTScore F1, {self.named}, weights {self.encoder.fingerprint()}, layer {self.encoder.layers[0]} of "
            f"{self.encoder.depth}, float32, no idf, no rescaling, special tokens left out, "
            f"transformers {metadata.version('transformers')}"
        )
        return mean(values, signature + (f", {cut} texts cut to {self.limit} tokens" if cut else ""))

    def _ids(self, text: str) -> _Text:
        if not text.strip():
            return _Text([], [], False)
        ids, spans = self._encode([text], spans=True)[0]
        assert spans is not None
        if cut := len(ids) > self.limit:
            behind = min(spans.behind, self.limit)  # special tokens after the text are kept
            keep = [*range(self.limit - behind), *range(len(ids) - behind, len(ids))]
            ids, spans = [ids[i] for i in keep], spans.take(keep)
        return _Text(ids, [int(special) for special in spans.special], cut)

    def _embeddings(self, texts: Sequence[_Text]) -> Iterator[Tensor]:
        """Unit-length embeddings of each text's tokens (P x E), special tokens excluded."""
        pad = self.tokenizer.pad_token_id or 0
        ids_BP, mask_BP = padded([text.ids for text in texts], pad)
        text_BP = padded([[1 - special for special in text.special] for text in texts], 0)[0].bool()
        reps_BPE = self.encoder(ids_BP.to(self.device), mask_BP.to(self.device)).reps_BPE
        unit_BPE = nn.functional.normalize(reps_BPE.float(), dim=-1)
        for unit_PE, text_P in zip(unit_BPE, text_BP.to(self.device), strict=True):
            yield unit_PE[text_P]


@dataclass(frozen=True)
class _Text:
    """Token ids, a mask of the special tokens (1), and whether the text was truncated.

    Its length is the number of ids; 0 if all are special tokens.
    """

    ids: list[int]
    special: list[int]
    cut: bool

    def __len__(self) -> int:
        return 0 if all(self.special) else len(self.ids)


def greedy_f1(prediction_PE: Tensor, reference_PE: Tensor) -> float:
    """F1 of greedy matching of unit-length token embeddings; 0 where precision or recall is not positive."""
    cosine = prediction_PE @ reference_PE.T
    precision, recall = float(cosine.max(1).values.mean()), float(cosine.max(0).values.mean())
    return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0 else 0.0


def _positions(body: nn.Module) -> int:
    """The number of positions of a model; 10^9 if it has no limit."""
    limit = getattr(body.config.get_text_config(), "max_position_embeddings", None) or 10**9  # type: ignore[operator,union-attr]
    for name, module in body.named_modules():  # RoBERTa's positions start after its padding index
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return int(limit)
