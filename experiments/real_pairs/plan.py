"""The runs of table one as data, in order of importance. `run.py` carries them out, `table.py` shows the results.

A value in braces stands for a path: {smol} and {llm_a_model} for the given models, {rows} for the corpus of short rows,
any other name for the folder of that run (of a run that tries several learning rates: the one with the lowest
validation loss).
"""

from __future__ import annotations

from dataclasses import dataclass

RATES = (3e-4, 1e-3)
"""Learning rates of the SLM; each system keeps the run with the lower validation loss."""
FIT = (
    "data.batch_tokens=1200",
    "trainer.precision=bf16-mixed",
    "trainer.max_steps=250",
    "trainer.val_every=50",
    "optim.warmup_steps=20",
    "callbacks.generate_rows=0",
    "callbacks.monitor=val/loss",
)
"""The training of every system on the task: about 3,200 rows, less than one epoch."""
LONG = ("trainer.max_steps=1000", "trainer.val_every=200")
"""A remedy: four times as long."""
ALL = ("data.train={rows}/train_all.jsonl", "trainer.max_steps=1200", "trainer.val_every=200")
"""A remedy: all short rows of the training split. (With the 4,000 of the other runs, the loss rose after 600 steps.)"""
FIRST = ("optim.lr=3e-4", "optim.projector_lr=3e-4", "trainer.max_steps=100", "trainer.val_every=25")
"""The first validations with the rate of the SLM for the projector too; the default is ten times as much."""
HEAL = (
    "task=lm",
    "data.overlong=split",
    "data.max_response_tokens=128",
    "data.batch_tokens=1024",
    "data.validation_size=100",
    "data.test_size=50",
    "optim.distill=0.5",
    "optim.lr=1e-3",
    "optim.warmup_steps=50",
    "trainer.precision=bf16-mixed",
    "trainer.max_steps=480",
    "trainer.val_every=120",
    "callbacks.generate_rows=0",
    "callbacks.monitor=val/loss",
)
"""The training with which the cut SLM recovers text prediction, on the plain texts of the whole corpus."""


@dataclass(frozen=True)
class Corpus:
    """A corpus and the settings that depend on it.

    Attributes:
        name: name of its folder and value of `data=`.
        task: value of `task=`.
        longest: characters of the longest prompt and of the longest response that `run.py` keeps.
        train: training rows of most runs; validation and test rows are at most 300 and 500.
        longest_response: maximum number of tokens of a response.
        answer: maximum number of tokens of a generated answer.
        ask: instruction for the LLM that is not tuned.
    """

    name: str
    task: str
    longest: tuple[int, int]
    train: int
    longest_response: int
    answer: int
    ask: str


CORPORA = (
    Corpus("samsum", "summarization", (400, 160), 4000, 96, 64, "Summarize this chat in one short sentence.\\n\\n"),
    Corpus("alpaca", "instruction", (300, 200), 4000, 200, 64, ""),
)


@dataclass(frozen=True)
class Run:
    """One command, or one for each learning rate.

    Attributes:
        name: name of the run and of its folder (with several rates: NAME-RATE).
        verb: verb of llm2slm.
        overrides: overrides of the command.
        needs: names of the runs whose folders it reads.
        rates: values of optim.lr to try.
        rate_of: name of the run whose chosen rate it uses.
        title: title of its row in the table; None: no row.
    """

    name: str
    verb: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    rate_of: str | None = None
    title: str | None = None


def plan(corpus: Corpus) -> tuple[Run, ...]:
    """The runs of one corpus."""
    data = (
        *("data=json", "data.source=source", "data.target=target", "data.max_prompt_tokens=256"),
        *(f"data.{split}={{rows}}/{split}.jsonl" for split in ("train", "validation", "test")),
        *(f"data.max_response_tokens={corpus.longest_response}", f"task={corpus.task}", "task.language=en"),
        f"task.max_new_tokens={corpus.answer}",
    )
    alone = ("model=slm", "model.slm.name={heal}/model", *data, *FIT)
    pair_b = (
        *("model=llm2slm", "model.llm.name={llm_b}/model", "model.llm.dtype=bfloat16"),
        *("model.slm.name={heal}/model", *data),
    )
    pair_a = ("model=llm2slm", "model.llm.name={llm_a_model}", "model.slm.name={heal}/model", *data)
    ask = (
        "model.llm.chat=true",
        "model.llm.dtype=bfloat16",
        *((f"model.llm.prefix='{corpus.ask}'",) * bool(corpus.ask)),
    )

    def hybrid(name: str, pair: tuple[str, ...], store: str, title: str, *more: str, rate_of: str | None = None) -> Run:
        llm = ("llm_b",) if pair is pair_b else ()
        overrides = (*pair, *FIT, f"data.reps={{{store}}}/reps", *more)
        needs = ("heal", *llm, store, *((rate_of,) if rate_of else ()))
        return Run(name, "train", overrides, needs, () if rate_of else RATES, rate_of, title)

    def store(name: str, pair: tuple[str, ...], *more: str) -> Run:
        return Run(name, "encode", (*pair, "encode.dtype=bfloat16", *more), ("heal", *(("llm_b",) * (pair is pair_b))))

    offsets, kv = "model.tokenizers=offsets", ("model.tokenizers=offsets", "model.conditioning=kv")
    return (
        Run(
            "heal",
            "train",
            (
                *("model=slm", "model.slm.name={smol}", "model.slm.layers=6", "model.slm.vocab=corpus"),
                *(
                    "model.llm.name={smol}",
                    "model.llm.dtype=bfloat16",
                    f"data={corpus.name}",
                    "data.root={data}",
                    *HEAL,
                ),
            ),
        ),
        Run(
            "llm_b",
            "train",
            ("model=llm", "model.llm.name={smol}", "model.llm.tune=lora", "optim.lr=1e-3", *data, *FIT),
            title="LLM B: SmolLM2-135M, tuned by LoRA",
        ),
        Run("slm", "train", alone, ("heal",), RATES, title="SLM alone"),
        store("reps_kv", pair_b, *kv),
        hybrid("kv", pair_b, "reps_kv", "hybrid of B, `kv`", *kv),
        *(
            hybrid(f"kv_{how}", pair_b, "reps_kv", f"control of `kv`: {how}", *kv, f"model.control={how}", rate_of="kv")
            for how in ("shuffled", "constant", "zero")
        ),
        hybrid("kv_long", pair_b, "reps_kv", "hybrid of B, `kv`, 1,000 steps", *kv, *LONG, rate_of="kv"),
        Run(
            "kv_distilled",
            "train",
            (*pair_b, *kv, *FIT, "optim.distill=0.5"),
            ("heal", "llm_b", "kv"),
            rate_of="kv",
            title="hybrid of B, `kv`, distilled from B",
        ),
        Run("slm_long", "train", (*alone, *LONG), ("heal", "slm"), rate_of="slm", title="SLM alone, 1,000 steps"),
        store("reps_kv_all", pair_b, *kv, ALL[0]),
        hybrid("kv_all", pair_b, "reps_kv_all", "hybrid of B, `kv`, all rows, 1,200 steps", *kv, *ALL, rate_of="kv"),
        Run(
            "slm_all", "train", (*alone, *ALL), ("heal", "slm"), rate_of="slm", title="SLM alone, all rows, 1,200 steps"
        ),
        store("reps", pair_b, offsets),
        hybrid("add", pair_b, "reps", "hybrid of B, `add`", offsets),
        hybrid(
            "cross_attention",
            pair_b,
            "reps",
            "hybrid of B, `cross_attention`",
            offsets,
            "model.conditioning=cross_attention",
        ),
        hybrid(
            "prepend",
            pair_b,
            "reps",
            "hybrid of B, `prepend`, pooled",
            offsets,
            "model.conditioning=prepend",
            "model.pool=0.25",
        ),
        Run(
            "llm_a",
            "evaluate",
            ("run={llm_a_model}", "split=test", *ask, *data),
            title="LLM A: Qwen2.5-Coder-0.5B-Instruct, not tuned",
        ),
        store("reps_deep", pair_b, offsets, "model.llm.layer=-1"),
        hybrid(
            "cross_deep",
            pair_b,
            "reps_deep",
            "hybrid of B, `cross_attention`, last layer",
            *(offsets, "model.conditioning=cross_attention", "model.llm.layer=-1"),
            rate_of="cross_attention",
        ),
        *(
            Run(
                f"first_{name}",
                "train",
                (*pair_b, *FIT, "data.reps={reps}/reps", offsets, *more),
                ("heal", "llm_b", "reps"),
            )
            for name, more in (
                ("add", FIRST),
                ("cross_attention", (*FIRST, "model.conditioning=cross_attention")),
                ("prepend", (*FIRST, "model.conditioning=prepend", "model.pool=0.25")),
            )
        ),
        Run("first_slm", "train", (*alone, *(each for each in FIRST if "projector" not in each)), ("heal",)),
        Run("labels_b", "label", ("run={llm_b}", "split=train", *data), ("llm_b",)),
        Run(
            "labelled_b",
            "train",
            (*alone, "data.labels=llm", "data.labels_from={labels_b}"),
            ("heal", "labels_b", "slm"),
            rate_of="slm",
            title="SLM alone, trained on the answers of B",
        ),
        store("reps_a", pair_a, offsets, *ask),
        hybrid(
            "a_cross_attention",
            pair_a,
            "reps_a",
            "hybrid of A, `cross_attention`",
            offsets,
            *ask,
            "model.conditioning=cross_attention",
            rate_of="cross_attention",
        ),
        store("reps_a_tokens", pair_a, "model.tokenizers=llm_tokens", *ask),
        hybrid(
            "a_tokens",
            pair_a,
            "reps_a_tokens",
            "hybrid of A, its tokens read by the SLM",
            "model.tokenizers=llm_tokens",
            *ask,
            rate_of="cross_attention",
        ),
        Run(
            "speed",
            "benchmark",
            (
                *("run={kv}", "systems.slm={slm}", "systems.cross_attention={cross_attention}"),
                *("benchmark.batch=[1,8]", "benchmark.prompts=8", "benchmark.prompt_tokens=[128]"),
                *("benchmark.response_tokens=[32]", "benchmark.repeats=3", "benchmark.warmup=1", *data),
                *("benchmark.decoders=[generate,captured,int8]", "benchmark.hybrid_decoders=[lossless]"),
            ),
            ("kv", "slm", "llm_b", "cross_attention"),
        ),
        Run("labels_a", "label", ("model.llm.name={llm_a_model}", "split=train", *ask, *data)),
        Run(
            "labelled_a",
            "train",
            (*alone, "data.labels=llm", "data.labels_from={labels_a}"),
            ("heal", "labels_a", "slm"),
            rate_of="slm",
            title="SLM alone, trained on the answers of A",
        ),
    )
