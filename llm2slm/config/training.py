"""Keys under `optim`, `trainer`, `logger` and `callbacks`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimConfig:
    """Optimizer, learning rates (linear warm-up, then decay) and loss."""

    name: str = "adamw"
    """adamw | muon (orthogonalized momentum for matrices, AdamW for the rest; same learning rates)."""
    lr: float = 1e-3
    """Peak learning rate of the language model that is trained."""
    projector_lr: float | None = None
    """Peak learning rate of the projector and of layers that attend to z. None: `lr`; with a pretrained SLM ten times
    `lr`, limited to max(`lr`, 1e-3)."""
    embedding_lr: float | None = None
    """Peak learning rate of the SLM's embeddings (of tokens, of positions, and relative attention biases) and output
    layer, which then have no weight decay. None: `lr`."""
    freeze_slm_steps: int = 0
    """Optimizer steps at the beginning in which only the projector and layers that attend to z are trained; the SLM has
    neither gradient nor weight decay. The schedule spans all steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices (not of biases, norms and embeddings)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's averages of the gradient and its square."""
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up."""
    schedule: str = "cosine"
    """cosine | linear | constant, after warm-up, to `final_lr` at the last step."""
    final_lr: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over the vocabulary, in training only."""
    distill: float = 0.0
    """Weight w (0 to 1) of distillation: the loss is (1 - w) cross-entropy + w T^2 KL(LLM || SLM) of the next-token
    distributions. Above 0 the whole LLM is loaded in addition; both models must generate the same tokens."""
    distill_temperature: float = 1.0
    """Softmax temperature T of both distributions."""


@dataclass
class TrainerConfig:
    """Arguments of lightning.Trainer (see its documentation), validation and threads."""

    accelerator: str = "auto"
    """auto | gpu | cuda | mps | cpu: type of device. auto: a GPU if there is one."""
    devices: int | str = 1
    """Number of devices (processes) per node; -1 or auto: all; a list as text, "0,1": these."""
    num_nodes: int = 1
    """Number of nodes."""
    strategy: str = "auto"
    """Distribution over devices: auto, ddp, fsdp (weights divided among processes), or another name of Lightning."""
    precision: str = "32-true"
    """32-true | bf16-mixed | 16-mixed | auto: dtype of the computation in training. auto: bf16-mixed on a GPU or CPU
    that multiplies bfloat16 faster than float32, else 32-true; config.yaml records the choice."""
    matmul_precision: str = "highest"
    """highest | high | medium: precision of float32 matrix products in training (torch.set_float32_matmul_precision).
    high and medium may use TF32 or bfloat16 within a product, if the device supports it."""
    max_steps: int = 1000
    """Optimizer steps."""
    max_time: str | None = None
    """Time after which training stops, as DD:HH:MM:SS. None: no limit."""
    val_every: int | None = None
    """Optimizer steps between validations. None: a tenth of max_steps."""
    val_rows: int | None = 2000
    """Maximum number of validation rows for val/loss. Of a larger split a sample of this size is drawn, the same
    at each validation and in every run. None: all rows."""
    gradient_clip_val: float | None = 1.0
    """Maximum norm of the gradient of all trained parameters. None: no clipping."""
    accumulate_grad_batches: int = 1
    """Batches per optimizer step."""
    int8_encoding: bool = False
    """On a CPU: the frozen LLM encodes prompts in int8 in training steps and validations, which is faster and changes
    the representations within the precision of int8. The test and the saved model are in `model.llm.dtype`."""
    micro_batch: str | None = None
    """auto: a training batch that does not fit into the memory of the device is processed in parts, with the same
    gradient. None: it ends the training."""
    log_every_n_steps: int = 10
    """Optimizer steps between logged values of training (losses, learning rates, tokens per second)."""
    deterministic: bool = False
    """Use deterministic algorithms only; an operation without one is an error."""
    profiler: str | None = None
    """simple | advanced | pytorch: profiler of Lightning. None: none."""
    overfit_batches: int = 0
    """Train on this number of batches only, repeatedly, to check that the loss approaches 0. 0: on all."""
    limit_val_batches: int | None = None
    """Maximum number of validation batches, of `data.eval_batch_size` rows. None: all."""
    progress: bool = True
    """Progress bar with tokens per second."""
    threads: int | None = None
    """CPU threads of torch. None: torch's default."""


@dataclass
class LoggerConfig:
    """Loggers of every verb. `train` always writes metrics.csv."""

    name: str = "csv"
    """csv | wandb | tensorboard | mlflow: logger; csv: no other files than those of the verb. Several are joined by +,
    as wandb+tensorboard."""
    mode: str = "auto"
    """wandb: auto (online if logged in, else offline) | online | offline (files, for `wandb sync`)."""
    project: str = "llm2slm"
    """wandb: project of the run; mlflow: experiment."""
    entity: str | None = None
    """wandb: user or team of the project. None: the default of the account."""
    group: str | None = None
    """Group of the run. None: the name of its sweep."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run, in addition to one for each override."""
    uri: str | None = None
    """mlflow: address of the store, as sqlite:///FILE, a folder, or http://HOST:PORT. None: MLFLOW_TRACKING_URI, else
    mlflow.db in the working directory."""
    samples: int = 16
    """Rows of the table of samples: prompt, reference and predictions; in `train` so many at each validation."""
    artifacts: list[str] = field(default_factory=lambda: ["config", "code"])
    """config | code | results | model: uploaded files. model: SLM and projector, without the LLM."""


@dataclass
class CallbacksConfig:
    """Early stopping and checkpoints."""

    monitor: str = "val/loss"
    """Logged value that selects the best checkpoint and stops early: val/loss, or val/<metric> as val/bleu."""
    mode: str | None = None
    """min | max: direction of `monitor`. None: min for val/loss, else the direction of the metric."""
    patience: int | None = None
    """Validations without improvement before stopping. None: never stop early."""
    min_delta: float = 0.0
    """Minimum change of `monitor` that counts as an improvement, for `patience`."""
    generate_rows: int = 64
    """Validation rows that are generated and scored at each validation. 0: none."""
    predictions: dict[str, str] = field(default_factory=dict)
    """Name of a system -> run directory of `evaluate split=validation` (or its predictions.jsonl): further columns of
    the table of samples (logger.samples), as {llm: DIR, slm: DIR}."""
