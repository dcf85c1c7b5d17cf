"""`evaluate`: scores compared with the metric packages, splits, plain models, and limits."""

from __future__ import annotations

import json
import shutil

import pytest
import sacrebleu
from command_line import without_next
from sampling import representatives
from tiny_runs import SIZES, checkpoint, tiny_run
from transformers import AutoModelForSeq2SeqLM

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.evaluate import print_defaults
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.types import Decoding, Overlong, SystemKind, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_plain_model_is_scored_on_the_requested_split(root, split):
    config = tiny_run(root)
    config.run, config.split = config.model.llm.name, split
    config.task.metrics = ["chrf", "bleu"]
    result = evaluate(config, root / split)
    rows = rows_of(root / split)
    wanted = [json.loads(line) for line in (root / "rows" / f"{split}.jsonl").read_text().splitlines()]
    assert [(r["source"], r["target"]) for r in rows] == [(w["source"], w["target"]) for w in wanted]
    answers, targets = [r["prediction"] for r in rows], [[r["target"] for r in rows]]
    quality = result.systems[0].quality
    assert quality["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(answers, targets).score)
    assert quality["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(answers, targets).score)
    assert quality["chrf"].n == SIZES[split]
    stored = json.loads((root / split / "result.json").read_text())
    assert (stored["verb"], stored["systems"][0]["kind"]) == ("evaluate", "llm")


@pytest.mark.slow
def test_a_model_that_no_run_trained_has_no_trainable_parameters(root):
    config = tiny_run(root)
    config.run = config.model.llm.name
    plain = evaluate(config, root / "plain").systems[0].parameters
    size = sum(p.numel() for p in AutoModelForSeq2SeqLM.from_pretrained(config.run).parameters())
    assert plain == {"total": size, "trainable": 0}
    for kind in SystemKind:
        trained = train(tiny_run(root, kind.value, max_steps=1), root / kind.value).systems[0].parameters
        config.run = str(root / kind.value)
        assert evaluate(config, root / f"{kind.value}-again").systems[0].parameters == trained
        assert trained["trainable"] > 0 and (trained["trainable"] < trained["total"]) is (kind is SystemKind.llm2slm)


TUNED = {
    "full": ("llm2slm", "full", {}),
    "none": ("llm2slm", "none", {}),
    "lora": ("llm2slm", "lora", {"r": 2, "target_modules": ["q", "v"]}),
    "prompt": ("llm2slm", "prompt", {"num_virtual_tokens": 3}),
    "pattern": ("llm2slm", "decoder", {}),
    "slm": ("slm", "full", {}),
    "slm, lora": ("slm", "lora", {"r": 2, "target_modules": ["q", "v"]}),
    "slm, prefix": ("slm", "prefix", {"num_virtual_tokens": 3}),
    "llm, pattern": ("llm", "decoder", {}),
}
"""Kind, tune, arguments of peft."""


@pytest.mark.parametrize("name", representatives(TUNED, ["lora", "prompt"]))
def test_the_number_of_trained_parameters_is_recorded_with_the_model(root, tmp_path, name):
    """The run, its model alone and its export: each result has the number of the parameters that training changed."""
    kind, tune, peft = TUNED[name]
    config = tiny_run(root, kind, max_steps=1)
    side = config.model.llm if kind == "llm" else config.model.slm
    side.tune, side.peft = tune, peft
    parameters = train(config, tmp_path / "run").systems[0].parameters
    changed = checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    if tune != "full":
        assert parameters["trainable"] == sum(tensor.numel() for tensor in changed.values())
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    assert main(["export", f"run={tmp_path}/run", f"out={tmp_path}/export"]) == 0
    for place in ("run", "run/model", "alone", "export"):
        again = tiny_run(root, kind)
        again.run = str(tmp_path / place)
        found = evaluate(again, tmp_path / "again" / place).systems[0].parameters
        assert found["trainable"] == parameters["trainable"]
        assert tune == "lora" or found["total"] == parameters["total"]  # adapters are merged


def test_the_limits_are_those_of_the_configuration(root):
    """The setting that the message names must resolve the error."""
    config = tiny_run(root)
    config.run, config.data.max_prompt_tokens = config.model.llm.name, 8
    with pytest.raises(UserError, match=r"at most 8 .*data\.max_prompt_tokens.*data\.overlong=truncate"):
        evaluate(config, root / "long")
    config.data.overlong = Overlong.truncate
    [cut] = evaluate(config, root / "cut").systems
    assert cut.quality["chrf"].n == SIZES["test"]
    config.data.overlong = Overlong.drop
    [system] = evaluate(config, root / "dropped").systems
    kept = system.quality["chrf"].n
    assert 0 < kept == len(rows_of(root / "dropped")) < SIZES["test"]
    over = SIZES["test"] - kept
    for one, way, dropped in ((cut, "truncate", 0), (system, "drop", over)):
        told = one.notes["data"]["test"]
        assert (told["overlong_prompts"], told["overlong"], told["dropped"]) == (over, way, dropped)


def test_a_missing_run_and_a_wrong_run_are_refused(root, tmp_path):
    config = tiny_run(root)
    with pytest.raises(UserError, match="evaluate needs run=DIR"):
        evaluate(config, tmp_path)
    config.run = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing"):
        evaluate(config, tmp_path)


def test_a_misspelt_metric_is_reported_before_model_and_data_are_loaded(root, tmp_path):
    config = tiny_run(root)
    config.task.metrics, config.run, config.data.test = ["chrf", "blue"], str(tmp_path / "nothing"), "nowhere.jsonl"
    with pytest.raises(UserError, match=r"^metric 'blue' is unknown; did you mean 'bleu'"):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bertscore_without_its_model_is_reported_before_model_and_data_are_loaded(root, tmp_path):
    config = tiny_run(root)
    config.run, config.data.test = str(tmp_path / "nothing"), "nowhere.jsonl"
    config.task.metrics = ["chrf", f"bertscore:{tmp_path}/no_model:3"]
    with pytest.raises(UserError, match=r"no_model': no such folder"):
        evaluate(config, tmp_path / "out")
    config.task.metrics = ["bertscore:builtin/llm:80"]
    with pytest.raises(UserError, match=r"^metric 'bertscore:builtin/llm:80': builtin/llm has layers 0 to "):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The built-in LLM with a low `max_new_tokens`, scored by metrics of every kind."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    names = "bleu,perplexity,chrf,chrf++,ter,rouge1,token_f1,bertscore:builtin/llm:2"
    small = ["data.test_size=50", "task.max_new_tokens=12", "trainer.progress=false", "trainer.accelerator=cpu"]
    run = ["evaluate", "run=builtin/llm", f"task.metrics=[{names}]", *small, f"hydra.run.dir={folder}"]
    assert main(run) == 0
    return folder, names.split(","), runs.read_result(folder)["systems"][0]


@pytest.mark.slow
def test_final_scores_agree_with_a_second_package(judged):
    """torchmetrics, on the recorded predictions.

    To 1e-3 of 100, since it counts in float32. chrF to 0.02: torchmetrics takes the mean of the F of each n, sacrebleu
    (and our formula by hand in test_metrics.py, to 1e-6) the F of mean precision and mean recall; the two are equal
    where precision is recall, which is not so of answers that end too early.
    """
    from torchmetrics.text import CHRFScore, ROUGEScore, SacreBLEUScore, SQuAD, TranslationEditRate

    folder, _, system = judged
    rows = rows_of(folder)
    answers, targets = [row["prediction"] for row in rows], [[row["target"]] for row in rows]
    assert all(answers), "torchmetrics leaves empty ones out"

    def words(text):  # German: letters and digits, case folded; no stems, no English articles
        return "".join(letter if letter.isalnum() else " " for letter in text.casefold())

    def marked(text):  # so that no word is an English article, which SQuAD leaves out
        return " ".join(f"x{word}" for word in words(text).split())

    asked = [{"prediction_text": marked(answer), "id": str(i)} for i, answer in enumerate(answers)]
    right = [{"answers": {"answer_start": [0], "text": [marked(t)]}, "id": str(i)} for i, [t] in enumerate(targets)]
    rouge = ROUGEScore(use_stemmer=False, normalizer=words, tokenizer=str.split, rouge_keys="rouge1")
    theirs = {
        "bleu": SacreBLEUScore()(answers, targets),
        "chrf": CHRFScore(n_word_order=0)(answers, targets),
        "chrf++": CHRFScore()(answers, targets),
        "ter": TranslationEditRate()(answers, targets),
        "rouge1": rouge(answers, targets)["rouge1_fmeasure"],
        "token_f1": SQuAD()(asked, right)["f1"] / 100,
    }
    for name, found in theirs.items():
        value = system["quality"][name]["value"]
        assert 10 < value < 99, f"{name} would say little here"
        assert value == pytest.approx(100 * float(found), abs=0.02 if name.startswith("chrf") else 1e-3), name


def test_every_metric_is_recorded_in_the_requested_order_over_all_rows_and_by_length(judged):
    _, names, system = judged
    assert list(system["quality"]) == names
    assert {score["n"] for score in system["quality"].values()} == {50}
    assert "teacher-forced, tokenizer " in system["quality"]["perplexity"]["signature"]
    assert "BERTScore F1, builtin/llm, weights " in system["quality"]["bertscore:builtin/llm:2"]["signature"]
    assert 1 < system["quality"]["perplexity"]["value"] < 5  # of the references, independent of the answers
    assert {bucket["by"] for bucket in system["buckets"]} == {"prompt", "response"}
    for by in ("prompt", "response"):
        own = [bucket for bucket in system["buckets"] if bucket["by"] == by]
        assert sum(bucket["n"] for bucket in own) == 50
        assert all(list(bucket["quality"]) == names for bucket in own)
        for name in ("rouge1", "token_f1", "bertscore:builtin/llm:2"):  # means of rows
            mean = sum(bucket["n"] * bucket["quality"][name] for bucket in own) / 50
            assert mean == pytest.approx(system["quality"][name]["value"])
    short, *_, long = [bucket for bucket in system["buckets"] if bucket["by"] == "response"]
    assert long["quality"]["bleu"] < short["quality"]["bleu"] - 20  # twelve tokens are not enough for these


def test_a_default_corpus_is_reported_on_stderr_only(tmp_path, monkeypatch, capsys):
    """The number of rows and the length of answers do not name a corpus."""
    monkeypatch.chdir(tmp_path)
    small = ["data.test_size=2", "task.max_new_tokens=2", "trainer.progress=false", "trainer.accelerator=cpu"]
    assert main(["evaluate", "run=builtin/llm", *small, "hydra.run.dir=out"]) == 0
    shown = capsys.readouterr()
    assert [line for line in without_next(shown.err).splitlines() if line.startswith("llm2slm: ")] == [
        "llm2slm: builtin/llm records no corpus: using data=builtin (data.corpus=translation) with "
        "task.prefix='translate English to German: '"
    ]
    assert "data.corpus" not in shown.out
    assert all(row["source"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("data", "name", "samsum"), ("data", "corpus", "summarization"), ("task", "prefix", "")],
)
def test_a_named_corpus_or_prefix_is_not_reported(capsys, section, key, value):
    config = RunConfig(run="someone/model")
    print_defaults(config)
    assert "someone/model records no corpus" in capsys.readouterr().err
    setattr(getattr(config, section), key, value)
    print_defaults(config)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("place", [".", "model"])
def test_the_corpus_that_a_run_records_is_not_reported(tmp_path, capsys, place):
    runs.write_config(tmp_path, RunConfig())
    (tmp_path / "model").mkdir()
    print_defaults(RunConfig(run=str(tmp_path / place)))
    assert capsys.readouterr() == ("", "")


def test_the_decoder_is_recorded_and_lossless_has_the_scores_of_the_llm(root, capsys):
    config = tiny_run(root)
    config.trainer.max_steps = 3
    train(config, root / "decoded")
    config.run, config.task.metrics = str(root / "decoded"), ["chrf", "perplexity"]
    found = {}
    exact = (Decoding.generate, Decoding.eager, Decoding.captured)
    for name in (*exact, Decoding.lossless):
        config.decoding = name
        found[name] = evaluate(config, root / f"by-{name}").systems[0]
    rows = f"of {SIZES['test']} responses without a rejected token"
    assert (
        len([line for line in capsys.readouterr().err.splitlines() if "decoding=lossless: " in line and rows in line])
        == 1
    )
    config.run, config.decoding = config.model.llm.name, Decoding.generate
    llm = evaluate(config, root / "by-llm").systems[0]
    assert all(found[name].quality == found[Decoding.generate].quality for name in exact)
    assert found[Decoding.lossless].quality == llm.quality != found[Decoding.generate].quality
    assert (found[Decoding.lossless].kind, found[Decoding.lossless].weights) == ("llm", llm.weights)
    assert rows_of(root / "by-lossless") == rows_of(root / "by-llm")
    both, trained = found[Decoding.lossless].parameters, found[Decoding.captured].parameters
    assert both["total"] > llm.parameters["total"] and both["trainable"] == trained["trainable"] > 0
    assert "decoder" not in found[Decoding.generate].notes
    assert found[Decoding.captured].notes["decoder"] == {"name": "captured"}
    note = found[Decoding.lossless].notes["decoder"]
    assert note["name"] == "lossless" and note["counts"]["rows"] == SIZES["test"]
    assert 0 <= note["counts"]["share_accepted_whole"] <= 1 and note["counts"]["tokens"] >= SIZES["test"]
