"""Small tokenizers of every kind on the Hub, trained on one text, with the same control tokens."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Tokenizer

TEXTS = [
    f"The {a} farmer sells {n} old houses, it's true (or so he said). Ein {a} Bauer. user assistant system im start end"
    for a in ("big", "small", "tall")
    for n in range(30)
] + ["abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 < > / | _ . , : ; ! ? [ ] = + - ' \" # @"]


def _space_pieces(special: list[str]) -> Tokenizer:
    """Unigram with spaces as ▁, like converted SentencePiece models: words, parts of words, and characters."""
    words = sorted({word for text in TEXTS for word in text.split()})
    characters = sorted({character for word in words for character in word})
    vocab = [(name, 0.0) for name in special] + [("▁", -3.0)]
    vocab += [("▁" + word, -6.0) for word in words] + [(word, -7.0) for word in words if len(word) > 1]
    return Tokenizer(models.Unigram([*vocab, *[(c, -9.0) for c in characters]], unk_id=special.index("<unk>")))


def t5() -> T5Tokenizer:
    """The class of T5: drops white space and unknown characters; `</s>` is a piece of its vocabulary."""
    core = _space_pieces(["<pad>", "</s>", "<unk>"])
    return T5Tokenizer(vocab=[tuple(entry) for entry in json.loads(core.to_str())["model"]["vocab"]])


def xlmr() -> PreTrainedTokenizerFast:
    """Like XLM-R and mBART: Unigram after normalizers that collapse spaces, `<s>` before and `</s>` after the text."""
    core = _space_pieces(["<s>", "<pad>", "</s>", "<unk>"])
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.add_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    """Like Llama 2: BPE with byte fallback, ▁ before every segment of text."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    core = Tokenizer.from_str(_without_added_bytes(core))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def _without_added_bytes(core: Tokenizer) -> str:
    rules = json.loads(core.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if not token["content"].startswith("<0x")]
    rules["pre_tokenizer"] = None
    return json.dumps(rules)


def bytes_bpe() -> PreTrainedTokenizerFast:
    """Like GPT-2 and Qwen: byte-level BPE; eos is also unk; control tokens of a chat are added."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, bos_token=end, unk_token=end)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def bert() -> PreTrainedTokenizerFast:
    """Like BERT: WordPiece of lower-cased words."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names, mask_token="[MASK]", eos_token="[SEP]")


def words() -> PreTrainedTokenizerFast:
    """Word level."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


KINDS = {
    "t5": t5, "xlmr": xlmr, "llama": llama, "bytes_bpe": bytes_bpe, "bert": bert, "words": words,
}  # fmt: skip
