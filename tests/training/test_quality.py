"""Scores of generated answers during training: two processes log those of one, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from lightning import Callback, Trainer
from sacrebleu import corpus_bleu
from sampling import representatives
from tiny_runs import build, curve, tiny_run

from llm2slm.commands.evaluate import measure
from llm2slm.commands.preflight import check_monitor
from llm2slm.commands.train import language_seen, validation_scorer
from llm2slm.config import TaskConfig
from llm2slm.data.sources.sources import task_of
from llm2slm.data.tasks import resolve
from llm2slm.evaluation.metrics.scores import score
from llm2slm.evaluation.predict import answers, predict
from llm2slm.training.fit import fit
from llm2slm.training.loggers import MetricsFile
from llm2slm.training.module import TrainingModule
from llm2slm.training.validation_scores import GatheredTexts, GenerationQuality, ValidationScorer
from llm2slm.types import Example, UserError

METRICS = ["bleu", "chrf++", "rougeL"]


class Seen(Callback):
    """Records the logged values in each process."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        path = self.folder / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps({"logged": logged, "world": trainer.world_size}))


def validated(folder, rows, scorer_of, **trainer):
    """The values that each process logged, after a validation with answers to the first rows."""
    config = tiny_run(folder.parent / "shared")
    config.task.metrics = METRICS
    config.data.eval_batch_size = 2
    model, data = build(config)
    scorer = scorer_of(validation_scorer(data.task, config.data.eval_batch_size))
    folder.mkdir()
    quality = GenerationQuality(scorer, data.examples("validation")[:rows])
    Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, barebones=False,
        use_distributed_sampler=False, enable_checkpointing=False, callbacks=[quality, Seen(folder)],
        default_root_dir=folder, **trainer,
    ).validate(TrainingModule(model, config.optim, 1), data, verbose=False)  # fmt: skip
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def recording(folder):
    """Changes a scorer so that each process writes the rows of its share, and the scoring process the texts, to a file.

    The model is untrained: a part of the source is appended to each prediction, so that scores are not all 0.
    """

    def change(scorer):
        def answer(model, examples, share, between):
            found = scorer.generate(model, examples, share, between)
            (folder / f"answered{share[0]}.json").write_text(json.dumps(sorted(found)))
            return {row: f"{text} {examples[row].source[:20]}" for row, text in found.items()}

        def scored(examples, texts):
            (folder / "texts.json").write_text(json.dumps(texts))
            return scorer.score(examples, texts)

        return ValidationScorer(answer, scored)

    return change


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("rows", representatives([11, 2, 1], [11, 1]))
def test_two_processes_log_exactly_the_scores_of_one(tmp_path, rows):
    """Eleven rows in batches of two: six batches, three for each. Two rows: one batch to generate, the second
    process has none. One row: the second process has none for the loss either."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    [single] = validated(alone, rows, recording(alone), devices=1)
    double = validated(both, rows, recording(both), devices=2, strategy="ddp_fork")
    assert [each["world"] for each in double] == [2, 2]
    names = [f"val/{name}" for name in METRICS]
    assert 5 < single["logged"]["val/chrf++"] < 95
    for process in double:
        assert {name: process["logged"][name] for name in names} == {name: single["logged"][name] for name in names}
        assert process["logged"]["val/loss"] == pytest.approx(single["logged"]["val/loss"], rel=1e-6)
    assert read(both, "texts") == read(alone, "texts")
    parts = [read(both, f"answered{rank}") for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == read(alone, "answered0") == list(range(rows))
    if rows < 11:
        assert [len(part) for part in parts] == [rows, 0]
        return
    assert [len(part) for part in parts] == [6, 5]
    # the score of each share differs, and so does the mean of both
    _, data = build(tiny_run(tmp_path / "shared"))
    texts, targets = read(alone, "texts"), [example.target for example in data.examples("validation")]
    own = [score(["chrf++"], [texts[i] for i in part], [targets[i] for i in part])["chrf++"].value for part in parts]
    assert len({*own, sum(own) / 2, single["logged"]["val/chrf++"]}) == 4


CHINESE = ["我们在北京的餐馆里吃了晚饭。", "他每天早上去公园跑步。", "老师在教室里读一本旧书。"]
WORSE = [CHINESE[0][:3], "她不喜欢喝咖啡。", CHINESE[2][-4:]]
BETTER = [CHINESE[0], CHINESE[1].replace("早上", "晚上"), CHINESE[2].replace("旧", "新")]


@pytest.mark.parametrize("language", representatives(["zh", None], ["zh"]))
def test_the_better_checkpoint_is_kept_for_chinese(tmp_path, language):
    """After the first step worse answers, then better ones, then worse ones again. With words between spaces both have
    score zero, and the first one would be kept."""
    config = tiny_run(tmp_path, max_steps=3, val_every=1)
    for split in ("train", "validation", "test"):
        rows = [{"source": "the dog sees", "target": CHINESE[n % 3]} for n in range(9 if split == "train" else 3)]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        setattr(config.data, split, str(path))
    config.task.metrics, config.task.language = ["bleu", "rougeL"], language
    config.callbacks.monitor, config.callbacks.generate_rows = "val/bleu", 3
    model, data = build(config)
    task = task_of(config.task, config.data)
    data.task = task
    scorer = validation_scorer(task, 4, language_seen(data.examples("test")))
    given = iter([WORSE, BETTER, WORSE])
    scorer = ValidationScorer(lambda *_: dict(enumerate(next(given))), scorer.score)
    done = fit(config, tmp_path, model, data, loggers=[MetricsFile(tmp_path)], scorer=scorer)
    assert torch.load(done.best, weights_only=True)["global_step"] == 2
    logged = [float(row["val/bleu"]) for row in curve(tmp_path) if row.get("val/bleu")]
    for value, answered in zip(logged, [WORSE, BETTER, WORSE], strict=True):
        assert value == pytest.approx(corpus_bleu(answered, [CHINESE], tokenize="zh").score, rel=1e-6)
        final = measure(model, data, task, answered, config=config, split="test")  # scored like the final test
        assert value == pytest.approx(final["bleu"].score().value, rel=1e-6)
        assert corpus_bleu(answered, [CHINESE], force=True).score == 0


def test_validation_is_tokenized_like_the_final_test_for_different_scripts():
    """Validation rows in Latin script only, like the first rows of such a corpus may be."""
    task = resolve(TaskConfig(metrics=["rougeL"]))
    latin = [Example(0, "", "", "Füße")]
    assert validation_scorer(task, 4, "und").score(latin, ["f"]) == {"rougeL": 0}
    assert validation_scorer(task, 4, "en").score(latin, ["f"])["rougeL"] > 0  # f of f, e: tokenized as English
    assert language_seen([Example(0, "", "", "книга")]) == "und"
    assert language_seen([Example(0, "", "", "книга", "ru"), *latin]) == "en"


@pytest.mark.parametrize("world", representatives([1, 2, 3, 8], [1, 3]))
def test_the_shares_of_all_processes_equal_the_answers_of_one(tmp_path, world):
    """Also with more processes than batches. The answers are identical, because the batches are."""
    config = tiny_run(tmp_path)
    model, data = build(config)
    examples = data.examples("validation")
    found = {}
    for rank in range(world):
        part = answers(model, examples, data.task, 3, share=(rank, world), progress=False)
        assert not part.keys() & found.keys()
        found |= part
    assert [found[i] for i in range(len(examples))] == predict(model, examples, data.task, 3, progress=False)


@pytest.mark.parametrize("texts", [{}, {4: "a"}, {3: "", 0: "né 犬 \U0001f600", 7: "half \ud83d", 1: "x\n" * 300}])
def test_texts_are_exchanged_unchanged(texts):
    kept = GatheredTexts()
    kept.update(texts)
    assert kept.compute() == texts


def test_metrics_that_need_a_model_are_computed_at_the_end_only(tmp_path):
    config = tiny_run(tmp_path)
    config.task.metrics, config.callbacks.monitor = ["perplexity", "bertscore:a", "chrf"], "val/perplexity"
    task = resolve(config.task)
    with pytest.raises(UserError, match=r"monitor=val/perplexity: this run never logs it; it logs val/loss, val/chrf$"):
        check_monitor(config, task)
    scorer = validation_scorer(task, 4)
    assert scorer is not None
    examples = build(config)[1].examples("test")
    assert list(scorer.score(examples, [""] * len(examples))) == ["chrf"]
    config.task.metrics = ["perplexity"]
    assert validation_scorer(resolve(config.task), 4) is None
