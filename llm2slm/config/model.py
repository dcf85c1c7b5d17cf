"""Keys under `model`: the LLM, the SLM, the projector and the conditioning."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llm2slm.gguf_files.names import is_gguf
from llm2slm.types import Control, Init, Start, SystemKind, Tokenizers, UserError, Vocab


@dataclass
class LanguageModelConfig:
    """A transformers model: the LLM or the SLM."""

    name: str | None = None
    """Hub id, local folder, GGUF file, or `builtin/llm` (for tests and demonstrations: trained only on the built-in
    corpora of generated English-German sentences, English reports, and requests). None requires init=random and a full
    `config`."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    gguf_file: str | None = None
    """GGUF file in the repository or folder `name`, as model-q4_0.gguf; `name` may also be the path of a GGUF file.
    Config, tokenizer and weights are read from it. Trained weights are dequantized; those of a frozen LLM stay
    quantized if transformers has a kernel for them."""
    init: Init | None = None
    """Initial weights. pretrained: those of `name`; random: random weights, with the config of `name` or `config`
    below. None: pretrained with a name, else random."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the transformers config. With a `model_type` they define a new model with random weights, without a
    `name`; a `name` on the command line replaces such a model of a group or an experiment. Without a `model_type` they
    change the config of `name`; pretrained weights must still fit (with fewer layers, the first ones are loaded). With
    init=random, vocab_size and special token ids are those of the tokenizer."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; or `train:8000`: train one with a vocabulary of 8000 on the training split.
    None: that of `name` (with tokenizers=shared, that of the LLM for both models)."""
    keep_whitespace: bool = False
    """Generating model: add newline, tab, carriage return and runs of 2, 4, 8 and 16 spaces to the tokenizer if it
    loses them (as T5's does), with trained embeddings. Not with tokenizers=shared."""
    keep_characters: int = 0
    """Generating model: maximum number of characters of the training texts, white space included, that are added to the
    tokenizer because it loses them, the most frequent first, with trained embeddings. 0: none. Not with
    tokenizers=shared."""
    vocab: Vocab | None = None
    """Generating model: `corpus` reduces the vocabulary, and with it the embeddings and the output layer, to the
    entries of the training split, special tokens and single bytes; training texts keep their tokens. None: the whole
    vocabulary. Not with tokenizers=shared or data.streaming."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: dtype of the weights."""
    attn_implementation: str | None = None
    """eager | sdpa | flash_attention_2 | ...: attention implementation of transformers. None: its default."""
    tune: str = "full"
    """Trained parameters of the generating model: full | none (only projector and layers that attend to z) | lora
    (adapters, merged when saved) | prompt (embeddings before the prompt) | prefix (keys and values before those of
    self-attention); or a regular expression that selects parameters by name, as '\\.[45]\\.'."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Arguments of the config of peft for `tune`: for example {r: 8, lora_alpha: 16} for lora, {num_virtual_tokens: 20}
    for prompt and prefix."""

    @property
    def start(self) -> Init:
        """`init`, or its default."""
        return self.init or (Init.random if self.name is None else Init.pretrained)

    @property
    def source(self) -> str | None:
        """The model to load: `name`, with `gguf_file` appended.

        Raises:
            UserError: `gguf_file` without a name, or with a name that is a GGUF file, or without the suffix .gguf.
        """
        if self.gguf_file is None:
            return self.name
        side = "llm" if isinstance(self, LLMConfig) else "slm"
        if self.name is None or is_gguf(self.name):
            wrong = "needs model.{side}.name, the repository or folder that it is in"
            if self.name is not None:
                wrong = f"model.{side}.name={self.name} is a GGUF file itself; leave one of them out"
            raise UserError(f"model.{side}.gguf_file={self.gguf_file}: {wrong.format(side=side)}")
        if not is_gguf(self.gguf_file):
            raise UserError(f"model.{side}.gguf_file={self.gguf_file}: must end in .gguf")
        return f"{self.name.rstrip('/')}/{self.gguf_file}"


@dataclass
class LLMConfig(LanguageModelConfig):
    """The LLM; frozen unless it is the trained model (model=llm)."""

    layer: Any = None
    """Layer whose output represents the prompt: n (the output of block n, 1-based; 0: the embeddings), negative from
    the end (-1: the last), a fraction of the depth (0.5), or a list of these (a learned mixture). None: the last layer
    of an encoder, the middle layer of a decoder-only LLM."""
    prefix: str = ""
    """Text before every prompt in the input of the LLM only, such as the instruction of an instruction-tuned LLM."""
    chat: bool = False
    """Format every prompt (with `prefix`) as a user message in the chat template of the LLM."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """quantization_config of transformers, for a frozen LLM: quant_method (torchao, bitsandbytes, quanto, ...) and its
    arguments, as {quant_method: quanto, weights: int8}. Requires the library of the method."""


@dataclass
class SLMConfig(LanguageModelConfig):
    """The SLM, which generates the response."""

    layers: Any = None
    """Blocks of a pretrained SLM that are loaded: n (n evenly spaced ones, with the first and the last; 1: the first),
    a fraction of the depth (0.5, at least two blocks), or their numbers ([1,4,-1]: 1-based, negative from the end).
    None: all. Encoder-decoder: the same for both stacks, or {encoder: ..., decoder: ...}. Embeddings, norms and the
    output layer are always loaded."""


@dataclass
class ProjectorConfig:
    """The map E -> D from LLM representations to SLM inputs."""

    hidden: int | None = None
    """Width of the hidden layer of the MLP (Linear, ReLU, Linear). None: the width of the SLM. 0: a single Linear
    layer."""
    norm: bool = True
    """Normalize the representations (RMS) before the first layer; otherwise the best learning rate depends on their
    scale."""
    gate: bool | None = None
    """add: multiply z by a learned scalar that starts at 0; training then starts from the SLM alone. None: true for a
    pretrained SLM with its prompt embeddings, if `start` is not set."""
    start: Start | None = None
    """Initialization of the last layer. zero (add only): it is zero, and so is z; training starts from the SLM alone.
    identity (memory only; LLM and SLM of equal width): it is zero, and the LLM representations are added to its output.
    random: random weights. None: identity with conditioning memory and a pretrained encoder-decoder of the width of one
    LLM layer; else random."""


@dataclass
class ModelConfig:
    """LLM, SLM, projector and conditioning."""

    kind: SystemKind = SystemKind.llm2slm
    """System to train: llm2slm (the LLM encodes the prompt, the SLM generates) | slm (the SLM alone) | llm (the LLM
    alone)."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    slm: SLMConfig = field(default_factory=SLMConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    conditioning: str = "add"
    """How the SLM is conditioned on z, the projected LLM representations. none: without an LLM (model=slm or
    model=llm)."""
    pool: float | None = None
    """prepend: number of positions of z before the prompt embeddings: a maximum (>= 1), or a fraction of the LLM's
    tokens (< 1); each position is the mean over adjacent tokens. None: one position per token."""
    cross_every: int = 1
    """cross_attention: a gated layer is added before every n-th block of the SLM."""
    kv_blocks: list[int] | None = None
    """kv: for each block of the SLM the LLM block (1-based, negative from the end) whose keys and values it attends to.
    None: the blocks of model.slm.layers, else evenly spaced blocks."""
    tokenizers: Tokenizers = Tokenizers.shared
    """Alignment of the LLM's and the SLM's prompt tokens: shared (both models use the LLM's tokenizer) | offsets (z of
    an SLM token is the mean over the LLM tokens with the same characters) | llm_tokens (the SLM gets the LLM's tokens,
    with linearly mapped embeddings of the LLM)."""
    control: Control = Control.none
    """Ablation of the LLM representations, in training and in inference, as a control: none | constant (one vector at
    all positions) | shuffled (representations of another prompt) | zero (z is 0)."""

    @property
    def loses_llm(self) -> bool:
        """Whether it is a hybrid whose LLM has random weights. These are not saved, so it cannot be loaded."""
        return self.kind is SystemKind.llm2slm and self.llm.start is Init.random


@dataclass
class PlainLLMConfig:
    """Loading and prompting of an LLM that llm2slm did not train: a subset of the keys of `LLMConfig`."""

    revision: str | None = None
    """Hub branch, tag or commit."""
    gguf_file: str | None = None
    """GGUF file in the repository or folder `run`; `run` may also be the path of a GGUF file."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: dtype of the weights."""
    attn_implementation: str | None = None
    """eager | sdpa | flash_attention_2 | ...: attention implementation of transformers. None: its default."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """quantization_config of transformers, as {quant_method: quanto, weights: int8}. Requires its library."""
    prefix: str = ""
    """Text before every prompt; with `chat` part of the user message."""
    chat: bool = False
    """Format every prompt as a user message in the chat template of the LLM."""

    def named(self, name: str) -> LLMConfig:
        """The configuration of the LLM `name` with these keys."""
        return LLMConfig(name=name, **deepcopy(vars(self)))


@dataclass
class PlainModelConfig:
    """Keys under `model` of `generate`."""

    llm: PlainLLMConfig = field(default_factory=PlainLLMConfig)
