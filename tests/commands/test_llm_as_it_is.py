"""The LLM without training, in every verb in which it generates: loaded and prompted as configured, and recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import mistake
from sampling import first_few, representatives
from tiny_runs import publish, tiny_run
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.benchmark import run as benchmark
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.config import LLMConfig, RunConfig
from llm2slm.decoding import decoder
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_tokenizer, write_tiny_t5
from llm2slm.types import SystemKind, UserError

TEMPLATE = "{% for m in messages %}it sees: {{ m['content'] }} answer:{% endfor %}"
TEXTS = ["the little dog", "two dogs see it"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asking")


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM whose tokenizer has a chat template."""
    folder = write_tiny_t5(tmp_path_factory.mktemp("zoo") / "instructed", seed=1, width=24, decoder_layers=2)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)  # weights too small for prompts to decide the first words
    for name, parameter in model.named_parameters():
        if "EncDecAttention" in name or "DenseRelu" in name or "SelfAttention" in name:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def framed(texts: list[str], frame: str) -> list[str]:
    """The expected prompts: texts with chat template and prefix."""
    return [frame.format(text) for text in texts]


def oracle(folder: Path, prompts: list[str]) -> list[str]:
    """Answers of transformers to the given prompts, without this package."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens="answer:" not in prompt).input_ids
        written = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=1)
        found.append(tokenizer.decode(written[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return found


def llm_config(root: Path, llm: Path, **values: Any) -> RunConfig:
    config = tiny_run(root)
    config.run = str(llm)
    for key, value in values.items():
        setattr(config.model.llm, key, value)
    return config


def answers_of(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def sources(root: Path) -> list[str]:
    return [json.loads(line)["source"] for line in (root / "rows" / "test.jsonl").read_text().splitlines()]


FRAMES = {
    "plain": ({}, "{}"),
    "prefix": ({"prefix": "two old: "}, "two old: {}"),
    "chat": ({"chat": True}, "it sees: {} answer:"),
    "both": ({"chat": True, "prefix": "two old: "}, "it sees: two old: {} answer:"),
}


@pytest.mark.parametrize(
    ("llm", "frame"), representatives(FRAMES.values(), list(FRAMES.values())[-1:]), ids=list(FRAMES)
)
def test_evaluate_prompts_the_llm_as_configured_and_records_it(
    root: Path, instructed: Path, tmp_path: Path, llm: Any, frame: str
) -> None:
    result = evaluate(llm_config(root, instructed, **llm), tmp_path)
    wanted = oracle(instructed, framed(sources(root), frame))
    assert [a.strip() for a in answers_of(tmp_path)] == [w.strip() for w in wanted]
    model = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    assert (model["kind"], model["llm"]["name"]) == ("llm", str(instructed))
    told = runs.read_result(tmp_path)["systems"][0]["notes"]["llm"]
    assert told["name"] == str(instructed)
    assert (told["chat"], told["prefix"]) == (llm.get("chat", False), llm.get("prefix", ""))
    assert told["fingerprint"] == result.systems[0].weights


def test_frames_change_the_answers(root: Path, instructed: Path) -> None:
    """Else the test above could not fail."""
    texts = sources(root)
    assert len({tuple(oracle(instructed, framed(texts, frame))) for _, frame in FRAMES.values()}) == 4


@pytest.mark.parametrize("verb", ["evaluate", "label"])
def test_both_ways_to_name_the_llm_give_the_same_answers(
    root: Path, instructed: Path, tmp_path: Path, verb: str
) -> None:
    from llm2slm.commands import label

    run = {"evaluate": evaluate, "label": label.run}[verb]
    config = llm_config(root, instructed, chat=True)
    config.split = "test"
    run(config, tmp_path / "run")
    told = runs.read_result(tmp_path / "run")["systems"][0]
    other = llm_config(root, instructed, chat=True, name=str(instructed))
    other.run, other.split = None, "test"
    label.run(other, tmp_path / "named")
    named = runs.read_result(tmp_path / "named")["systems"][0]
    answers = [[row["prediction"] for row in system["samples"]] for system in (told, named)]
    assert answers[0] == answers[1]
    assert told["notes"]["llm"] == named["notes"]["llm"]


def generated(capsys: Any, *arguments: str) -> str:
    assert main(["generate", "max_new_tokens=6", *arguments]) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(("llm", "frame"), first_few(FRAMES.values(), 2), ids=list(FRAMES))
def test_generate_prompts_the_llm_as_configured(instructed: Path, capsys: Any, llm: Any, frame: str) -> None:
    keys = [f"model.llm.{key}={str(value).lower() if value is True else value}" for key, value in llm.items()]
    for text, wanted in zip(TEXTS, oracle(instructed, framed(TEXTS, frame)), strict=True):
        assert generated(capsys, f"run={instructed}", f"prompt={text}", *keys) == wanted.strip()


def test_dtype_revision_and_attention_are_applied(hub: Path, root: Path, tmp_path: Path) -> None:
    publish(hub, "me/llm", "a" * 40)
    config = llm_config(root, Path("me/llm"), revision="a" * 40, dtype="bfloat16", attn_implementation="eager")
    evaluate(config, tmp_path / "out")
    told = runs.read_result(tmp_path / "out")["systems"][0]["notes"]["llm"]
    assert (told["name"], told["revision"], told["dtype"]) == ("me/llm", "a" * 40, "bfloat16")
    with pytest.raises(UserError, match="me/llm"):
        evaluate(llm_config(root, Path("me/llm"), revision="b" * 40), tmp_path / "wrong")
    model = build_llm(LLMConfig(name="me/llm", dtype="bfloat16", attn_implementation="eager"))
    assert (model.slm.dtype, model.slm.config._attn_implementation) == (torch.bfloat16, "eager")


@pytest.mark.parametrize("verb", representatives(["evaluate", "generate", "label", "benchmark"], ["generate", "label"]))
def test_quantization_is_applied_in_every_verb_in_which_the_llm_generates(
    instructed: Path, tmp_path: Path, capsys: Any, verb: str
) -> None:
    """An unknown method is refused by the quantization, which therefore was called."""
    wrong = [f"run={instructed}", "model.llm.quantization={quant_method: nope}"]
    place = [] if verb == "generate" else [f"hydra.run.dir={tmp_path / 'out'}"]
    assert main([verb, *wrong, *place, *(["prompt=dogs"] if verb == "generate" else [])]) == 2
    assert mistake(capsys).startswith("model.llm.quantization.quant_method=nope is unknown")


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    representatives(["chat=true", "prefix=two ", "dtype=bfloat16", "attn_implementation=eager"], ["chat=true"]),
)
def test_a_trained_model_refuses_other_settings_of_its_llm(root: Path, tmp_path: Path, capsys: Any, key: str) -> None:
    """Even if it was copied without its run directory."""
    model = build_model(tiny_run(root).model)
    model.save_pretrained(tmp_path / "copy")
    capsys.readouterr()  # progress bars of loading and saving
    for verb, more in (("generate", ["prompt=dogs"]), ("evaluate", [f"hydra.run.dir={tmp_path / 'out'}"])):
        assert main([verb, f"run={tmp_path / 'copy'}", f"model.llm.{key}", *more]) == 2
        said = mistake(capsys)
        assert said.startswith(f"model.llm.{key.strip()}") and "was trained" in said
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_trained_llm_is_prompted_as_in_training(root: Path, tmp_path: Path, capsys: Any) -> None:
    config = tiny_run(root, "llm", max_steps=1)
    config.model.llm.prefix = "two old: "
    train(config, tmp_path / "run")
    capsys.readouterr()
    note = runs.read_result(tmp_path / "run")["systems"][0]["notes"]["llm"]
    assert (note["name"], note["prefix"], note["chat"]) == (config.model.llm.name, "two old: ", False)
    assert main(["generate", f"run={tmp_path / 'run'}", "prompt=dogs", "model.llm.chat=true"]) == 2
    assert mistake(capsys).startswith("model.llm.chat=true")
    again = tiny_run(root, "llm")
    again.run, again.model = str(tmp_path / "run"), config.model
    evaluate(again, tmp_path / "again")
    assert answers_of(tmp_path / "again") == answers_of(tmp_path / "run")
    assert runs.read_result(tmp_path / "again")["systems"][0]["notes"]["llm"]["prefix"] == "two old: "


def test_a_hybrid_without_its_run_is_recorded_with_its_configuration(root: Path, tmp_path: Path) -> None:
    config = tiny_run(root, mode="replace")
    config.model.llm.prefix = "two old: "
    build_model(config.model).save_pretrained(tmp_path / "copy")
    plain = tiny_run(root)
    plain.run, plain.model = str(tmp_path / "copy"), RunConfig().model
    evaluate(plain, tmp_path / "out")
    model = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["model"]
    assert (model["kind"], model["conditioning"], model["slm"]["name"]) == (
        "llm2slm",
        "replace",
        str(tmp_path / "copy"),
    )
    assert (model["llm"]["name"], model["llm"]["prefix"]) == (str(Path(config.model.llm.name).resolve()), "two old: ")
    told = runs.read_result(tmp_path / "out")["systems"][0]["notes"]["llm"]
    loaded = LLM2SLM.from_pretrained(tmp_path / "copy")
    assert told["fingerprint"] == loaded.config.llm["fingerprint"] and told["prefix"] == "two old: "


def timing(config: RunConfig) -> RunConfig:
    config.benchmark.repeats, config.benchmark.warmup, config.benchmark.prompts = 1, 0, 0
    config.benchmark.prompt_tokens, config.benchmark.response_tokens, config.benchmark.memory = [20], [4], False
    return config


def test_benchmark_prompts_the_llm_as_the_hybrid_does(root: Path, instructed: Path, tmp_path: Path) -> None:
    config = tiny_run(root)
    config.model.llm.name, config.model.llm.chat = str(instructed), True
    build_model(config.model).save_pretrained(tmp_path / "hybrid")
    config.run = str(tmp_path / "hybrid")
    llm, hybrid = benchmark(timing(config), tmp_path / "saved").systems
    assert llm.notes["llm"]["chat"] is hybrid.notes["llm"]["chat"] is True
    config.run = None
    llm, hybrid = benchmark(timing(config), tmp_path / "configured").systems
    assert llm.notes["llm"]["chat"] is hybrid.notes["llm"]["chat"] is True


@pytest.mark.slow
def test_the_llm_of_an_slm_system_is_prompted_as_configured(root: Path, instructed: Path, tmp_path: Path) -> None:
    config = tiny_run(root, "slm", max_steps=1)
    train(config, tmp_path / "slm")
    again = timing(tiny_run(root, "slm"))
    again.run, again.llm, again.model.llm.chat = str(tmp_path / "slm"), str(instructed), True
    llm, slm = benchmark(again, tmp_path / "out").systems
    assert (llm.notes["llm"]["name"], llm.notes["llm"]["chat"]) == (str(instructed), True)
    assert "llm" not in slm.notes


@pytest.mark.parametrize("verb", representatives(["evaluate", "generate", "export"], ["evaluate"]))
def test_an_llm_path_is_refused_for_a_model_without_an_llm(
    root: Path, instructed: Path, tmp_path: Path, capsys: Any, verb: str
) -> None:
    build_model(tiny_run(root, "slm").model).save_pretrained(tmp_path / "slm")
    capsys.readouterr()  # progress bars of loading and saving
    more = {"generate": ["prompt=dogs"], "export": [f"out={tmp_path / 'out'}"]}
    for run in (tmp_path / "slm", instructed):
        assert (
            main([verb, f"run={run}", f"llm={instructed}", *more.get(verb, [f"hydra.run.dir={tmp_path / 'out'}"])]) == 2
        )
        assert mistake(capsys) == (f"llm={instructed}: {run} has no LLM that could have moved; remove the key")


@pytest.mark.slow
def test_answers_with_other_prompt_settings_are_not_resumed(
    instructed: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    run = ["generate", f"run={instructed}", f"input={tmp_path / 'in.txt'}", f"output={tmp_path / 'out.txt'}"]
    run += ["batch_size=1", "max_new_tokens=3", "prefix="]
    whole, calls = decoder.generate_text, []

    def stopped(by: Any, texts: list[str], *more: Any, **arguments: Any) -> list[str]:
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(by, texts, *more, **arguments)

    monkeypatch.setattr(decoder, "generate_text", stopped)
    assert main(run) == 130
    capsys.readouterr()
    assert main([*run, "model.llm.chat=true"]) == 2
    assert "out.txt.part" in mistake(capsys)
    assert main(run) == 0


def with_second_end_token(instructed: Path, folder: Path) -> tuple[Path, int]:
    """A copy of the LLM that publishes a second end token, which it generates within an answer."""
    shutil.copytree(instructed, folder)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    written = model.generate(tokenizer(TEXTS[0], return_tensors="pt").input_ids, max_new_tokens=6, do_sample=False)
    end = int(written[0, 3])
    assert end not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.save_pretrained(folder)
    return folder, end


def test_an_answer_ends_at_each_published_end_token(root: Path, instructed: Path, tmp_path: Path) -> None:
    """An instruction model ends its turn with a token that need not be the tokenizer's eos."""
    llm, _ = with_second_end_token(instructed, tmp_path / "llm")
    model = LLM2SLM.from_pretrained(str(llm))
    answers = [text.strip() for text in model.generate_text(TEXTS, max_new_tokens=6)]
    assert answers == [text.strip() for text in oracle(llm, TEXTS)]
    assert answers[0] != oracle(instructed, TEXTS[:1])[0].strip()
    evaluate(llm_config(root, llm), tmp_path / "evaluated")
    assert [a.strip() for a in answers_of(tmp_path / "evaluated")] == [w.strip() for w in oracle(llm, sources(root))]


def test_a_trained_llm_ends_its_answers_as_its_labels_end(root: Path, instructed: Path, tmp_path: Path) -> None:
    llm, end = with_second_end_token(instructed, tmp_path / "llm")
    config = tiny_run(root)
    config.model.kind, config.model.llm = SystemKind.llm, LLMConfig(name=str(llm))
    train(config, tmp_path / "run")
    found = LLM2SLM.from_pretrained(str(tmp_path / "run" / "model"))
    assert found.slm.generation_config.eos_token_id == found.collator.slm_tokenizer.eos_token_id != end
