"""BERTScore: how well the tokens of prediction and reference match by what a model makes of them in their contexts.

Zhang et al. 2020: each token is matched with the one of the other text whose embedding is most alike (greedy, by
cosine); the mean over the prediction's tokens is precision, over the reference's recall, and F1 the score. Here without
idf weights and baseline rescaling. The special tokens that a tokenizer puts around a text are read by the model, but
have no part in the means, nor (other than in the authors' package) in the matching.
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
from llm2slm.data.tokenization.plain_text import PlainText
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.evaluation.metrics.scores import BERTSCORE, Measured, mean
from llm2slm.evaluation.predict import progress_bar
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.loading.pretrained import BUILTIN, commit, load_encoder_layers, locate, read_config
from llm2slm.types import UserError

PAIRS = 32
"""Rows whose two texts are read in one batch."""


@dataclass(frozen=True)
class Named:
    """What a metric's name says: the model, and the layer (None: an encoder's last, the middle one of a decoder)."""

    model: str
    layer: int | None


def parse(name: str) -> Named:
    """The parts of bertscore:MODEL[:layer].

    Raises:
        UserError: no model.
    """
    rest = name.removeprefix(BERTSCORE)
    model, _, last = rest.rpartition(":")
    layer = int(last) if last.removeprefix("-").isdecimal() else None
    model = rest if layer is None else model
    if not model:
        raise UserError(f"metric {name!r}: names no model; give bertscore:MODEL[:layer], as bertscore:roberta-large:17")
    return Named(model, layer)


def check(name: str) -> None:
    """Refuses, before anything is loaded or trained, a model that is not there, a hybrid, or a layer that is not there.

    Raises:
        UserError: says which.
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
    """A model that reads, in float32, and how its tokens are matched.

    Args:
        name: of the metric, bertscore:MODEL[:layer]; layers count as in model.llm.layer (0 the embeddings, n the output
            of block n, negative from the end).
        device: where it reads.

    Raises:
        UserError: the model or its tokenizer cannot be read, or it has no such layer.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        named = parse(name)
        place = locate(named.model)
        self.tokenizer: Any = load_tokenizer(place)
        self._encode = PlainText(self.tokenizer)
        config = read_config(named.model)
        encoder = load_encoder_layers(LLMConfig(name=named.model, layer=named.layer), config)
        self.encoder = FrozenEncoder(encoder, named.layer).to(device)
        self.device = device
        self.limit = min(_positions(self.encoder.body), int(self.tokenizer.model_max_length))
        if named.model.startswith(BUILTIN):
            self.named = named.model
        elif Path(place).is_dir():
            self.named = f"{Path(place).name} (a local folder)"
        else:
            self.named = f"{named.model} at {commit(named.model) or 'an unknown commit'}"

    def measure(self, predictions: Sequence[str], references: Sequence[str], *, progress: bool = False) -> Measured:
        """F1 of each prediction with its reference, 0 to 100; 0 where one of them has no token.

        A text of more tokens than the model has positions is cut, and the signature says of how many that is true.
        """
        texts = [(self._ids(p), self._ids(r)) for p, r in zip(predictions, references, strict=True)]
        values = [0.0] * len(texts)
        order = sorted((i for i, pair in enumerate(texts) if all(pair)), key=lambda i: -max(map(len, texts[i])))
        with progress_bar(progress) as bar, torch.inference_mode():
            job = bar.add_task("BERTScore", total=len(texts), speed="")
            for start in range(0, len(order), PAIRS):
                rows = order[start : start + PAIRS]
                own = self._embeddings([text for row in rows for text in texts[row]])
                for row in rows:
                    values[row] = greedy_f1(next(own), next(own))
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
            behind = min(spans.behind, self.limit)  # special tokens behind the text stay
            keep = [*range(self.limit - behind), *range(len(ids) - behind, len(ids))]
            ids, spans = [ids[i] for i in keep], spans.take(keep)
        return _Text(ids, [int(special) for special in spans.special], cut)

    def _embeddings(self, texts: Sequence[_Text]) -> Iterator[Tensor]:
        """Of each text its tokens' embeddings, one a row, each of length 1; special tokens left out."""
        pad = self.tokenizer.pad_token_id or 0
        ids_BP = _padded([text.ids for text in texts], pad)
        mask_BP = _padded([[1] * len(text.ids) for text in texts], 0)
        own_BP = _padded([[1 - special for special in text.special] for text in texts], 0).bool()
        reps_BPE = self.encoder(ids_BP.to(self.device), mask_BP.to(self.device)).reps_BPE
        unit_BPE = nn.functional.normalize(reps_BPE.float(), dim=-1)
        for unit_PE, own_P in zip(unit_BPE, own_BP.to(self.device), strict=True):
            yield unit_PE[own_P]


@dataclass(frozen=True)
class _Text:
    """Token ids, which of them the tokenizer put around the text (1), and whether some were cut off.

    Its length is the number of ids; of special tokens alone it has none.
    """

    ids: list[int]
    special: list[int]
    cut: bool

    def __len__(self) -> int:
        return 0 if all(self.special) else len(self.ids)


def greedy_f1(ours_PE: Tensor, right_PE: Tensor) -> float:
    """F1 of greedy matching: rows of unit length, one a token. 0 where precision or recall is not positive."""
    alike = ours_PE @ right_PE.T
    precision, recall = float(alike.max(1).values.mean()), float(alike.max(0).values.mean())
    return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0 else 0.0


def _padded(rows: Sequence[list[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _positions(body: nn.Module) -> int:
    """Tokens that a model has positions for; where it has no such limit, very many."""
    limit = getattr(body.config.get_text_config(), "max_position_embeddings", None) or 10**9  # type: ignore[operator,union-attr]
    for name, module in body.named_modules():  # RoBERTa starts to count behind its padding index
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return int(limit)
