"""Keys under `optim`, `trainer`, `logger` and `callbacks`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimConfig:
    """Parameter groups for projector and language model, linear warm-up, then decay."""

    name: str = "adamw"
    """adamw | muon (orthogonalised momentum for matrices, AdamW for the rest; same learning rates)."""
    lr: float = 1e-3
    """Peak learning rate of the language model that is trained."""
    projector_lr: float | None = None
    """Peak learning rate of the projector, and of layers that attend to z. None: that of the language model; with a
    pretrained SLM ten times that, but no more than 1e-3 where the language model's is lower."""
    freeze_slm_steps: int = 0
    """Train the projector, and layers that attend to z, alone for so many optimizer steps: until then the SLM has
    neither gradient nor weight decay. The schedule is that of all steps."""
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
    """auto | gpu | cuda | mps | cpu."""
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    """32-true | bf16-mixed | 16-mixed: dtype of the computation while training."""
    matmul_precision: str = "highest"
    """highest | high | medium: of float32 matrix products in training (torch.set_float32_matmul_precision); lower ones
    may use TF32 or bfloat16 inside a product, where the device has units for it. All else is float32."""
    max_steps: int = 1000
    """Optimizer steps."""
    max_time: str | None = None
    """DD:HH:MM:SS."""
    val_every: int | None = None
    """Optimizer steps between validations. None: a tenth of max_steps."""
    val_rows: int | None = 2000
    """Rows of the validation split that val/loss is computed on while training; of a larger split so many are drawn,
    the same ones at each validation and in every run. None: all."""
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
