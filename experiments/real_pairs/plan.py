"""The runs of table one as data, in order of worth. `run.py` carries them out.

A value in braces stands for a path: {llm_a} and {smol} for the models that are given, any other name for the folder of
that run.
"""

from __future__ import annotations

from dataclasses import dataclass

SHORT = (
    "data=samsum",
    "data.train_size=4000",
    "data.validation_size=400",
    "data.test_size=819",
    "data.max_prompt_tokens=128",
    "data.max_response_tokens=64",
    "data.overlong=drop",
    "task=summarization",
    "task.max_new_tokens=64",
)
"""Short dialogues: rows with more tokens are dropped from every split (about half of them)."""
FIT = (
    "data.batch_tokens=1200",
    "trainer.precision=bf16-mixed",
    "optim.warmup_steps=20",
    "callbacks.generate_rows=0",
    "callbacks.monitor=val/loss",
)
STEPS = ("trainer.max_steps=250", "trainer.val_every=50")
RATES = (3e-4, 1e-3)
"""Learning rates of the SLM; each system keeps the run with the lower validation loss."""
HEAL = (
    "data=samsum",
    "task=lm",
    "data.overlong=split",
    "data.max_response_tokens=128",
    "data.validation_size=100",
    "data.test_size=50",
    "data.batch_tokens=1024",
    "optim.warmup_steps=50",
    "optim.lr=1e-3",
    "optim.distill=0.5",
    "callbacks.generate_rows=0",
    "callbacks.monitor=val/loss",
    "trainer.precision=bf16-mixed",
    "trainer.max_steps=480",
    "trainer.val_every=120",
)
LOADED_B = ("model=llm2slm", "model.llm.name={llm_b}/model", "model.tokenizers=offsets", "model.slm.name={heal}/model")
ALONE = ("model=slm", "model.slm.name={heal}/model")


@dataclass(frozen=True)
class Run:
    """One command, or one for each learning rate.

    Attributes:
        name: of the run and of its folder (with rates: NAME-RATE).
        verb: of llm2slm.
        overrides: of the command.
        needs: names of the runs whose folders it reads.
        rates: values of optim.lr to try.
        title: of its row in the table; None: it has none.
    """

    name: str
    verb: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    title: str | None = None


def hybrid(conditioning: str, store: str, title: str, *more: str, name: str | None = None) -> Run:
    """A hybrid of LLM B and the healed SLM, trained from a store."""
    own = (*LOADED_B, f"model.conditioning={conditioning}", f"data.reps={{{store}}}/reps", *SHORT, *FIT, *STEPS, *more)
    return Run(name or conditioning, "train", own, ("llm_b", "heal", store), RATES, title)


PLAN = (
    Run(
        "heal",
        "train",
        (
            *("model=slm", "model.slm.name={smol}", "model.slm.layers=6", "model.slm.vocab=corpus"),
            *("model.llm.name={smol}", "model.llm.dtype=bfloat16", *HEAL),
        ),
    ),
    Run(
        "llm_b",
        "train",
        (
            *("model=llm", "model.llm.name={smol}", "model.llm.tune=lora", "optim.lr=1e-3", *SHORT, *FIT),
            *("trainer.max_steps=250", "trainer.val_every=50"),
        ),
        title="LLM B: SmolLM2-135M, LoRA",
    ),
    Run("slm", "train", (*ALONE, *SHORT, *FIT, *STEPS), ("heal",), RATES, "SLM alone"),
    Run("reps_kv", "encode", (*LOADED_B, "model.conditioning=kv", "encode.dtype=bfloat16", *SHORT), ("llm_b", "heal")),
    hybrid("kv", "reps_kv", "`kv`"),
    Run("reps", "encode", (*LOADED_B, "encode.dtype=bfloat16", *SHORT), ("llm_b", "heal")),
    hybrid("add", "reps", "`add`"),
    hybrid("cross_attention", "reps", "`cross_attention`"),
    hybrid("prepend", "reps", "`prepend`, pooled", "model.pool=0.25"),
    *(
        hybrid("kv", "reps_kv", f"`kv`, control {control}", f"model.control={control}", name=f"kv_{control}")
        for control in ("shuffled", "constant", "zero")
    ),
    Run(
        "labels_b",
        "label",
        ("run={llm_b}", "split=train", *SHORT),
        ("llm_b",),
    ),
    Run(
        "distilled_b",
        "train",
        (*ALONE, *SHORT, *FIT, *STEPS, "data.labels=llm", "data.labels_from={labels_b}"),
        ("heal", "labels_b"),
        RATES,
        "SLM on LLM B's labels",
    ),
    Run(
        "llm_a",
        "evaluate",
        (
            *("run={llm_a_model}", "model.llm.chat=true", "model.llm.dtype=bfloat16", "split=test", *SHORT),
            "model.llm.prefix='Summarize this chat in one short sentence.\\n\\n'",
        ),
        title="LLM A: Qwen2.5-Coder-0.5B-Instruct as it is",
    ),
)
