"""Keys under `model`: the LLM, the SLM, the projector and the conditioning."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from llm2slm.gguf_files.names import is_gguf
from llm2slm.types import Control, Init, Start, SystemKind, Tokenizers, UserError, Vocab


@dataclass
class LanguageModelConfig:
    """A model of the transformers library: the LLM, or the SLM."""

    name: str | None = None
    """Hub id, local folder, GGUF file, or `builtin/llm` (for tests and demonstrations: it was trained on the built-in
    corpora alone, generated English-German sentences, English reports, and requests). None only with init=random and a
    full `config`."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    gguf_file: str | None = None
    """File of the repository or folder `name` that holds the model in the GGUF format, as model-q4_0.gguf; `name` may
    also be the path of such a file. Config, tokenizer and weights are read from it. Weights that are trained are
    unpacked; those of an LLM that is not trained stay packed where transformers has a kernel for that."""
    init: Init | None = None
    """pretrained: the weights of `name`; random: only its config, or `config` below. None: pretrained where there is a
    name, else random."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the transformers config. With a `model_type`: a whole new model (init=random), without a `name`. On the
    command line a `name` replaces a model that a group or an experiment describes so. Without a `model_type`: changes
    to the named model's config; pretrained weights must still fit (of more layers than it asks for, the first ones are
    loaded). vocab_size and special token ids always follow the tokenizer when init=random."""
    tokenizer: str | None = None
    """Hub id or folder of its tokenizer; `train:8000`: train one of so many entries on the training split first. None:
    that of `name` (with tokenizers=shared the LLM's, for both)."""
    keep_whitespace: bool = False
    """Of the model that writes: add newline, tab, carriage return and runs of 2, 4, 8 and 16 spaces to its tokenizer,
    as far as it loses them (T5's does), with embeddings to be trained. Not with tokenizers=shared."""
    keep_characters: int = 0
    """Of the model that writes: add at most so many characters of the training texts that its tokenizer loses, the most
    frequent first, white space among them, with embeddings to be trained. 0: none. Not with tokenizers=shared."""
    vocab: Vocab | None = None
    """Of the model that writes: corpus: keep only the entries of its vocabulary, and rows of its embeddings and output
    layer, that the training split, special tokens and single bytes need; training texts keep their tokens. None: all.
    Not with tokenizers=shared, nor with data.streaming."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: dtype in which the weights are held."""
    attn_implementation: str | None = None
    """eager | sdpa | flash_attention_2 | ...: what transformers offers for the model. None: its own choice."""
    tune: str = "full"
    """full | none (only what guides it) | lora (adapters, merged when saved) | prompt (embeddings in front of its
    prompt) | prefix (keys and values in front of its self-attention's): what training changes of the model that writes;
    or a regular expression looked for in parameters' names, as '\\.[45]\\.'."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Arguments of peft's config of that tune: as {r: 8, lora_alpha: 16} for lora, {num_virtual_tokens: 20} for prompt
    and prefix."""

    @property
    def start(self) -> Init:
        """What `init` says, or means where it says nothing."""
        return self.init or (Init.random if self.name is None else Init.pretrained)

    @property
    def source(self) -> str | None:
        """What is loaded: `name`, and the file in it (`gguf_file`).

        Raises:
            UserError: the file is given without a name, or is no GGUF file by its name.
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
    """The LLM, whose weights stay as they are unless it is itself what is trained (model=llm)."""

    layer: Any = None
    """Layer whose output represents the prompt: None: an encoder's last, or the middle one of a decoder-only LLM;
    n: after block n (1-based, 0 the embeddings); negative: from the end (-1 the last); 0.5: that fraction of the depth;
    a list of such: a learned mix of them."""
    prefix: str = ""
    """Put in front of every prompt when the LLM reads it, and only then, as an instruction that it was tuned on."""
    chat: bool = False
    """Put every prompt (with `prefix`) into the LLM's chat template, as a user's turn that is to be answered."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """transformers' own quantization_config, for an LLM that is not trained: quant_method (torchao, bitsandbytes,
    quanto, ...) and what that method takes, as {quant_method: quanto, weights: int8}. Needs its library."""


@dataclass
class SLMConfig(LanguageModelConfig):
    """The SLM, which alone generates."""

    layers: Any = None
    """Blocks of a pretrained SLM that are kept; only they are read from disk. None: all; n: so many, evenly spaced, the
    first and the last among them (of one: the first); 0.5: that fraction of the depth, at least two; [1,4,-1]: these
    numbers (1-based, negative from the end). An encoder-decoder: of both sides, or {encoder: ..., decoder: ...}.
    Embeddings, norms and head are kept."""


@dataclass
class ProjectorConfig:
    """The map E -> D from LLM representations to SLM inputs."""

    hidden: int | None = None
    """Width of the hidden layer of Linear, ReLU, Linear. None: the SLM's width. 0: one Linear layer alone."""
    norm: bool = True
    """RMS-normalise the representations first (without it their scale decides the learning rate)."""
    gate: bool | None = None
    """Multiply z by a learned scalar that starts at 0, so that training starts from the plain SLM (add only). None: do
    so where a pretrained SLM reads its own prompt embeddings with conditioning add and `start` is not set."""
    start: Start | None = None
    """zero: the last layer starts at zero, and so does z (add only): training starts from the plain SLM, and that layer
    gets a gradient at the first step. identity: the last layer starts at zero, and the LLM's representations are added
    to its output (memory only, LLM and SLM of one width). random: it is drawn as any other. None: identity
    where a pretrained encoder-decoder is as wide as one layer of the LLM with memory; else random."""


@dataclass
class ModelConfig:
    """Who reads, who writes, and how the one reaches the other."""

    kind: SystemKind = SystemKind.llm2slm
    llm: LLMConfig = field(default_factory=LLMConfig)
    slm: SLMConfig = field(default_factory=SLMConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    conditioning: str = "add"
    """How z, the projected LLM representations, meets the SLM's prompt."""
    pool: float | None = None
    """prepend: positions of z in front of the SLM's own prompt: at most so many (1 or more), or that fraction of the
    LLM's tokens (below 1); each is the mean of neighbouring ones. None: one for each token."""
    cross_every: int = 1
    """cross_attention: in front of every so many blocks of the SLM."""
    kv_blocks: list[int] | None = None
    """kv: for each block of the SLM the block of the LLM (1-based; negative: from the end) whose keys and values it
    attends to. None: the blocks that the SLM was cut to (model.slm.layers), else evenly spaced ones."""
    tokenizers: Tokenizers = Tokenizers.shared
    control: Control = Control.none
    """What the projector gets in place of what the LLM says of the prompt, to see what that is worth: none | constant
    (the same vector everywhere) | shuffled (what it says of another prompt of the batch) | zero (z is 0). In training
    as in use."""


@dataclass
class PlainLLMConfig:
    """How an LLM that was not trained here is loaded and asked: keys of `LLMConfig` with the same meaning."""

    revision: str | None = None
    """Hub branch, tag or commit."""
    gguf_file: str | None = None
    """File of the repository or folder `run` that holds the model in the GGUF format; `run` may also be such a file."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: dtype in which the weights are held."""
    attn_implementation: str | None = None
    """eager | sdpa | flash_attention_2 | ...: what transformers offers for the model. None: its own choice."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """transformers' own quantization_config, as {quant_method: quanto, weights: int8}. Needs its library."""
    prefix: str = ""
    """Put in front of every prompt; with `chat` it is part of the user's turn."""
    chat: bool = False
    """Put every prompt into the LLM's chat template, as a user's turn that is to be answered."""

    def named(self, name: str) -> LLMConfig:
        """The configuration of the LLM of that name."""
        return LLMConfig(name=name, **deepcopy(vars(self)))


@dataclass
class PlainModelConfig:
    """Keys of the model that `generate` accepts: those of a plain LLM."""

    llm: PlainLLMConfig = field(default_factory=PlainLLMConfig)
