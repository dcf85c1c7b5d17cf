"""`llm2slm tokenizer`: a tokenizer trained on the train split of a corpus, sources and targets alike."""

from __future__ import annotations

from pathlib import Path

from llm2slm.config import TokenizerConfig


def run(config: TokenizerConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Trains the tokenizer and writes it to `config.out`.

    Raises:
        UserError: the corpus cannot be read, or the vocabulary is too small.
    """
    from llm2slm.data.sources import load_rows
    from llm2slm.data.tokenizer import train_tokenizer

    rows = load_rows(config.data, "train", config.seed)
    texts = [text for row in rows for text in (row["source"], row["target"])]
    tokenizer = train_tokenizer(texts, config.vocab_size, progress=True)
    tokenizer.save_pretrained(config.out)
    count = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    length = sum(map(len, texts)) / max(1, count)
    print(f"{config.out}: {len(tokenizer)} entries from {len(rows)} rows; {length:.2f} characters a token")
