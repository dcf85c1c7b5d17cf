"""The typed schema of a run. Every key a user can override is a field here, with its unit and its default.

`cli.py` registers these classes with Hydra, so that an unknown key or a wrong type fails before anything is loaded.
YAML files under `conf/` state only what differs from these defaults. Code below the CLI gets these dataclasses
(never a DictConfig), so the package works the same from a notebook.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from llm2slm.types import Conditioning, Control, Init, Labels, Overlong, StoreDtype, SystemKind, Tokenizers
from llm2slm.verb_config import ExportConfig, GenerateConfig, ReportConfig

__all__ = ["ExportConfig", "GenerateConfig", "ReportConfig"]  # beside the classes below


@dataclass
class LanguageModelConfig:
    """A model of the transformers library: the LLM, or the SLM."""

    name: str | None = None
    """Hub id, local folder, or `builtin/llm`. None only with init=random and a full `config`."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    init: Init | None = None
    """pretrained: the weights of `name`; random: only its config, or `config` below. None: pretrained where there is a
    name, else random."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the transformers config. With a `model_type`: a whole new model (init=random), which gives way to a
    `name` where one is set too. Without: changes to the named model's config; pretrained weights must still fit.
    vocab_size and special token ids always follow the tokenizer when init=random."""
    tokenizer: str | None = None
    """Hub id or folder of its tokenizer; `train:8000`: train one of so many entries on the training split first. None:
    that of `name` (with tokenizers=shared the LLM's, for both)."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: dtype in which the weights are held."""
    attn_implementation: str | None = None
    """eager | sdpa | flash_attention_2 | ...: what transformers offers for the model. None: its own choice."""
    tune: str = "full"
    """What training changes of the model that writes: full; none (only what guides it); lora (adapters, merged when
    saved); prompt (embeddings in front of its prompt); prefix (keys and values in front of its self-attention's); or a
    regular expression looked for in parameters' names, as '\\.[45]\\.'."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Arguments of peft's config of that tune: as {r: 8, lora_alpha: 16} for lora, {num_virtual_tokens: 20} for prompt
    and prefix."""

    @property
    def start(self) -> Init:
        """What `init` says, or means where it says nothing."""
        return self.init or (Init.random if self.name is None else Init.pretrained)


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
class ProjectorConfig:
    """The map E -> D from LLM representations to SLM inputs."""

    hidden: int | None = None
    """Width of the hidden layer of Linear, ReLU, Linear. None: the SLM's width. 0: one Linear layer alone."""
    norm: bool = True
    """RMS-normalise the representations first (without it their scale decides the learning rate)."""
    gate: bool = False
    """Multiply z by a learned scalar that starts at 0, so that training starts from the plain SLM (add only)."""


@dataclass
class ModelConfig:
    """Who reads, who writes, and how the one reaches the other."""

    kind: SystemKind = SystemKind.llm2slm
    llm: LLMConfig = field(default_factory=LLMConfig)
    slm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    conditioning: Conditioning = Conditioning.add
    pool: float | None = None
    """prepend: positions of z in front of the SLM's own prompt: at most so many (1 or more), or that fraction of the
    LLM's tokens (below 1); each is the mean of neighbouring ones. None: one for each token."""
    cross_every: int = 1
    """cross_attention: in front of every so many blocks of the SLM."""
    tokenizers: Tokenizers = Tokenizers.shared
    control: Control = Control.none
    """What the projector gets in place of what the LLM says of the prompt, to see what that is worth: none | constant
    (the same vector everywhere) | shuffled (what it says of another prompt of the batch) | zero (z is 0). In training
    as in use."""

    def llm_alone(self) -> ModelConfig:
        """Of its LLM, writing alone."""
        return replace(deepcopy(self), kind=SystemKind.llm, control=Control.none)


@dataclass
class CorpusConfig:
    """Which rows of which corpus."""

    name: str = "builtin"
    """builtin, json, hub, mixture, or a corpus of data/corpora.py: wmt14_en_de, multi30k, xsum, samsum, alpaca, ..."""
    corpus: str = "translation"
    """data=builtin: translation | summarization | instruction | mixture."""
    root: str | None = None
    """Folder that holds corpora (multi30k/, samsum/, ...). None: a known corpus comes from the Hub."""
    path: str | None = None
    """Id of a dataset of the Hub, or a folder with its files (a clone of it, or Parquet, JSON or CSV files named train,
    validation and test). With a known corpus: in place of the Hub's, with the same columns."""
    subset: str | None = None
    """Its configuration on the Hub. A known corpus knows its own."""
    revision: str | None = None
    """Its branch, tag or commit on the Hub."""
    train: str | None = None
    """data=json: file (json, jsonl, jsonl.gz, csv, parquet); else name of the split, or a part of it as train[:1000].
    A known corpus knows its own."""
    validation: str | None = None
    test: str | None = None
    source: str | None = None
    """Column that holds the source text; a field of a nested one by a dotted path, as translation.en."""
    target: str | None = None
    """Column that holds the target text."""
    train_size: int | None = None
    """Rows of the split at most; for built-in corpora how many to generate. None: all (built-in: a default)."""
    validation_size: int | None = None
    test_size: int | None = None


@dataclass
class PartConfig(CorpusConfig):
    """A corpus that is part of a mixture, and what is asked of its rows."""

    name: str = ""
    weight: float = 1.0
    """Share of the training rows, in proportion to the other parts' weights."""
    repeat: bool = False
    """Use its training rows again where its share asks for more than it has; else the whole mixture is as small as to
    do without."""
    task: str | None = None
    """translation | summarization | instruction. None: what the corpus is made for, else task.name."""
    prefix: str | None = None
    """As task.prefix, for these rows; task.prefix itself comes before it."""
    template: list[str] | None = None
    """As task.template, which holds where this is None."""


@dataclass
class DataConfig(CorpusConfig):
    """Which rows, how many, and how they become batches."""

    parts: list[PartConfig] = field(default_factory=list)
    """data=mixture: the corpora that it mixes, as [{name: samsum, root: DIR, weight: 2}, {name: multi30k, root: DIR}]:
    keys of `data` that say which rows, and weight, repeat, task, prefix, template."""
    batch_tokens: int = 2048
    """Padded tokens in a training batch at most (prompt + response, the longest row times the rows); a row that is
    longer is a batch of its own."""
    eval_batch_size: int = 32
    """Rows in a validation or generation batch."""
    max_prompt_tokens: int = 512
    """Longest prompt, in tokens, of either tokenizer; less where a model takes less."""
    max_response_tokens: int = 256
    """Longest target, in tokens, its eos included."""
    overlong: Overlong = Overlong.error
    """What to do with a longer one."""
    workers: int = 0
    """DataLoader processes."""
    reps: str | None = None
    """What `llm2slm encode` left: a folder of the LLM's representations. They are read from there, and the LLM is never
    loaded."""
    labels: Labels = Labels.gold
    """Answers that are trained on: gold (the corpus') | llm (those that the LLM wrote) | mix."""
    labels_from: str | None = None
    """labels=llm or mix: what `llm2slm label` left for the training split: its run directory, or the file."""
    labels_share: float = 0.5
    """labels=mix: share of the rows that get the LLM's answer, drawn by the seed."""
    streaming: bool = False
    """Read training rows while training, over and over, to trainer.max_steps: for a corpus that fits into no memory.
    Validation and test rows are held in it all the same."""
    buffer: int = 10_000
    """data.streaming: rows that are held, and shuffled, at once."""
    cache: str | None = "~/.cache/llm2slm"
    """Folder that keeps tokenized rows for other runs on the same texts and tokenizers ($LLM2SLM_CACHE where that is
    set and this is not); entries unused for 90 days are removed. None: keep none."""


@dataclass
class TaskConfig:
    """What the models are asked, and how the answer is judged. Empty fields: the task's own (data/tasks.py)."""

    name: str = "translation"
    """translation | summarization | instruction | mixture (each row says its own task)."""
    prefix: str | None = None
    """Put in front of every source; T5 models need theirs."""
    template: list[str] | None = None
    """Words the source from fields of the row, as "{question} {context}": the first one whose fields all have a text;
    or the name of such (alpaca). None: the corpus' own; []: the source column as it is."""
    metrics: list[str] | None = None
    """bleu | chrf | chrf++ | ter | rouge1 | rouge2 | rougeL | rougeLsum | token_f1 | exact_match | length_ratio |
    repetition (evaluation/metrics.py), logged while training too; and, in the end only, perplexity of the references
    and bertscore:MODEL[:layer], by any model. The first one is the main one."""
    max_new_tokens: int | None = None
    """Response tokens at most."""
    num_beams: int = 1


@dataclass
class OptimConfig:
    """Parameter groups for projector and language model, linear warm-up, then decay."""

    name: str = "adamw"
    """adamw | muon (orthogonalised momentum for matrices, AdamW for the rest; same learning rates)."""
    lr: float = 1e-3
    """Peak learning rate of the language model that is trained."""
    projector_lr: float | None = None
    """Peak learning rate of the projector. None: the same."""
    weight_decay: float = 0.01
    """Decoupled; matrices only (no biases, norms or embeddings)."""
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up."""
    schedule: str = "cosine"
    """cosine | linear | constant, after warm-up, to `final_lr` at the last step."""
    final_lr: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    label_smoothing: float = 0.0
    distill: float = 0.0
    """Weight w, 0 to 1, of the LLM's own next-token distribution: the loss is (1 - w) cross-entropy + w T^2 KL(LLM ||
    SLM). Above 0 the whole LLM is loaded beside what is trained; both must write the same tokens."""
    distill_temperature: float = 1.0
    """T: both distributions are softened by it."""


@dataclass
class TrainerConfig:
    """Arguments of lightning.Trainer; see its documentation. Only those that a run of ours uses."""

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    matmul_precision: str = "highest"
    """highest | high | medium: of float32 matrix products in training (torch.set_float32_matmul_precision); lower ones
    may use TF32 or bfloat16 inside a product, where the device has units for it. All else is float32."""
    max_steps: int = 1000
    """Optimizer steps."""
    max_time: str | None = None
    """DD:HH:MM:SS."""
    val_every: int | None = None
    """Optimizer steps between validations. None: a tenth of max_steps."""
    gradient_clip_val: float | None = 1.0
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 10
    deterministic: bool = False
    profiler: str | None = None
    overfit_batches: int = 0
    limit_val_batches: int | None = None
    progress: bool = True
    """Progress bar with tokens per second."""
    threads: int | None = None
    """CPU threads of torch. None: torch's own choice."""


@dataclass
class LoggerConfig:
    """Where curves go. metrics.csv is always written; a W&B run comes beside it."""

    name: str = "csv"
    """csv | wandb."""
    mode: str = "offline"
    """wandb: offline | online."""
    project: str = "llm2slm"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    samples: int = 16
    """Rows of the table of sample outputs."""


@dataclass
class CallbacksConfig:
    """Early stopping and checkpoints."""

    monitor: str = "val/loss"
    """Logged value that names the best checkpoint and stops early: val/loss, or val/<metric> as val/bleu."""
    mode: str | None = None
    """min | max: which way is better. None: min for val/loss, val/ter and val/repetition, max for any other."""
    patience: int | None = None
    """Validations without improvement before stopping. None: never stop early."""
    min_delta: float = 0.0
    generate_rows: int = 64
    """Validation rows that are generated from and scored at each validation. 0: none."""


@dataclass
class BenchmarkConfig:
    """The grid of an interleaved timing run."""

    batch: list[int] = field(default_factory=lambda: [1])
    prompt_tokens: list[int] = field(default_factory=list)
    """Prompt lengths, in LLM tokens. Empty: prompts of the test split, each with its reference's own length."""
    response_tokens: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    """Response lengths, in tokens, forced on every system. Unused for the test's own lengths."""
    prompts: int = 32
    """Prompts of the test split (validation where there is none) that are timed at their own lengths."""
    repeats: int = 5
    """Timed rounds; each round runs every system once, in a rotated order."""
    warmup: int = 2
    """Rounds that are not counted."""
    threads: int | None = None
    memory: bool = True
    """Also measure each system's peak memory (on CPU in a process of its own)."""


@dataclass
class LabelConfig:
    """How the LLM writes labels, beside `task.max_new_tokens` and `task.num_beams`."""

    do_sample: bool = False
    """Sample with the temperature and top_p below; else take the likeliest token (or beam)."""
    temperature: float = 1.0
    top_p: float = 1.0
    format: str = "jsonl"
    """jsonl | parquet."""


@dataclass
class EncodeConfig:
    """How the LLM's representations are kept."""

    dtype: StoreDtype = StoreDtype.bfloat16
    """float32 (nothing is rounded) | bfloat16 | int8 (with a scale for each token)."""
    batch_tokens: int = 8192
    """Padded prompt tokens that the LLM reads at once."""


@dataclass
class RunConfig:
    """One run of `train`, `evaluate`, `label`, `benchmark` or `demo`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    seed: int = 1
    run: str | None = None
    """Run directory that evaluate, generate, label and benchmark read; for train: a directory to resume."""
    llm: str | None = None
    """evaluate, generate, benchmark: where the LLM of `run` is now, if it has moved."""
    split: str = "test"
    """evaluate, label: train | validation | test."""
    systems: dict[str, Any] = field(default_factory=dict)
    """demo: name of a system -> overrides of this config for it; benchmark: name -> folder of another system."""


@dataclass
class TokenizerConfig:
    """`tokenizer`: a tokenizer trained on the train split of a corpus."""

    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    """Its prefix is part of the prompts that the tokenizer is to cut well."""
    vocab_size: int = 4000
    """Entries of the vocabulary at most, special tokens included."""
    out: str = "outputs/tokenizer"
    """Folder for it; name it in model.llm.tokenizer or model.slm.tokenizer."""
    seed: int = 1
