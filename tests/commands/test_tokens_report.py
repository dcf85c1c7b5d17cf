"""The report of `train` on its tokenizers before the first step, its refusals, and how texts are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sampling import first_few

from llm2slm import LLM2SLM
from llm2slm.cli import main
from llm2slm.commands.builtin_llm import warn_builtin_encoder, warn_builtin_llm
from llm2slm.config import DataConfig, PartConfig, RunConfig
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.testing import write_tiny_t5
from llm2slm.types import SystemKind
from tests.data.kinds import KINDS

CODE = "if x:\n\treturn {1}"
ROWS = {
    "train": [("The big farmer", "old"), ("a", CODE), ("b\tc", "a  b"), ("d", "</s> it's true")],
    "validation": [("The", "big"), ("a", "{漢}")],
    "test": [("a", "big"), ("b", "old")],
}


@pytest.fixture(scope="module")
def slm_folder(tmp_path_factory) -> Path:
    return write_tiny_t5(tmp_path_factory.mktemp("zoo") / "t5", tokenizer=KINDS["t5"]())


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, rows in ROWS.items():
        lines = [json.dumps({"source": source, "target": target}) for source, target in rows]
        Path(f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def train(slm: Path, *arguments: str, kind: str = "slm") -> int:
    data = ["data=json", *(f"data.{split}={split}.jsonl" for split in ROWS)]
    small = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.progress=false", "optim.warmup_steps=1"]
    short = ["task=instruction", "task.prefix=", "task.metrics=[exact_match]", "task.max_new_tokens=4"]
    named = [f"model={kind}", f"model.slm.name={slm}", "hydra.run.dir=run"]
    return main(["train", *named, *data, *small, *short, *arguments])


def warnings(shown) -> list[str]:
    return [line for line in shown.err.splitlines() if line.startswith("llm2slm: warning")]


def test_lossy_texts_are_counted_shown_and_warned_of(files, slm_folder, capsys) -> None:
    assert train(slm_folder) == 0
    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "responses lossy under the SLM's tokenizer 2 1 0" in lines
    assert "prompts lossy under the SLM's tokenizer 1 0 0" in lines
    told = warnings(shown)
    assert told[0] == (
        "llm2slm: warning: responses cannot be represented by the SLM's tokens, so no prediction can equal "
        "them (train 2 of 4, validation 1 of 2); train row 1 (from 0): 'if x:\\n\\treturn {1}' is "
        "read back as 'if x: return 1'; model.slm.keep_whitespace=true model.slm.keep_characters=256 add the missing "
        "tokens to the tokenizer"
    )
    assert told[1] == (
        "llm2slm: warning: prompts lose text in the SLM's tokens (train 1 of 4); train row 2 (from 0): 'b\\tc' is read "
        "back as 'b c'"
    )
    [system] = json.loads(Path("run/result.json").read_text("utf-8"))["systems"]
    assert system["notes"]["data"]["train"]["lost_responses"] == 2
    assert "lost responses 2" in Path("run/model/README.md").read_text("utf-8")
    [predicted, *_] = Path("run/predictions.jsonl").read_text("utf-8").splitlines()
    assert json.loads(predicted)["target"] == "big"


def test_too_large_a_share_of_lossy_texts_stops_the_run_before_anything_is_written(files, slm_folder, capsys) -> None:
    assert train(slm_folder, "data.max_lossy_share=0.4") == 2
    shown = capsys.readouterr()
    assert "responses lossy under the SLM's tokenizer" in shown.out
    errors = [line for line in shown.err.splitlines() if line.startswith("llm2slm: error")]
    assert errors == [
        "llm2slm: error: data=json, train: 2 of 4 responses cannot be represented by the SLM's tokens, more than "
        "data.max_lossy_share=0.4 allows; train row 1 (from 0): 'if x:\\n\\treturn {1}' is read back as 'if x: return "
        "1'; model.slm.keep_whitespace=true model.slm.keep_characters=256 add the missing tokens to the tokenizer, or "
        "raise data.max_lossy_share"
    ]
    assert not Path("run/config.yaml").exists() and not Path("run/checkpoints").exists()
    assert train(slm_folder, "data.max_lossy_share=2") == 2
    assert "data.max_lossy_share=2.0: must be between 0 and 1" in capsys.readouterr().err
    assert train(slm_folder, "data.max_lossy_share=0.5") == 0  # equal to the limit


def test_lost_text_is_kept_on_request(files, slm_folder, capsys) -> None:
    keep = ["model.slm.keep_whitespace=true", "model.slm.keep_characters=9", "data.max_lossy_share=0.5"]
    assert train(slm_folder, *keep) == 0
    shown = capsys.readouterr()
    # characters of the training split only: others are still lost
    assert (
        "run/tokenizers/slm_kept: 9 tokens added to the 308 of " in shown.err
        and "'\\n', '\\t', '\\r', '  ', '    ', '        ', '                ', '{', '}'" in shown.err
    )
    assert "responses lossy under the SLM's tokenizer 0 1 0" in [
        " ".join(line.split()) for line in shown.out.splitlines()
    ]
    assert len(load_tokenizer("run/model")) == 317
    assert main(["train", "run=run", "trainer.max_steps=3"]) == 0  # with the tokenizer of the first training
    assert "tokens added" not in capsys.readouterr().err
    model = LLM2SLM.from_pretrained("run/model")
    assert model.slm.get_input_embeddings().weight.shape[0] == 317
    assert model.collator.decode([model.collator.encode([example_of(CODE)])[0].response]) == [CODE]
    assert main(["export", "run=run", "out=given", "license=apache-2.0"]) == 0
    assert LLM2SLM.from_pretrained("given").collator.decode([load_tokenizer("given")(CODE)["input_ids"]]) == [CODE]
    assert main(["generate", "run=run", "prompt={a}", "max_new_tokens=3"]) == 0


@pytest.mark.parametrize(
    ("target", "added"),
    first_few(
        [
            ("▁{", "1 tokens added to the 308 of {}: '{{'"),
            ("▁", "tokenizer {}: loses none of the other requested text"),
        ],
        1,
    ),
)
def test_a_character_that_no_token_can_represent_is_left_out_and_reported(
    files, slm_folder, capsys, target, added
) -> None:
    Path("train.jsonl").write_text(json.dumps({"source": "a", "target": target}) + "\n")
    assert train(slm_folder, "model.slm.keep_characters=9") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not added" in line]
    assert added.format(slm_folder) in line
    assert line.endswith("; not added, since the decoder rewrites it: '▁'")


def example_of(text: str):
    from llm2slm.types import Example

    return Example(0, text, text, text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["model=llm2slm", "model.slm.keep_whitespace=true"],
            "model.slm.keep_whitespace=true adds tokens that the LLM does not have, and model.tokenizers=shared uses "
            "one tokenizer for both models; set model.tokenizers=offsets",
        ),
        (["model.slm.keep_characters=-1"], "model.slm.keep_characters=-1: must be at least 0"),
        (
            ["model.slm.keep_characters=9", "model.slm.tune=none", "model=llm2slm", "model.tokenizers=offsets",
             "model.conditioning=add"],
            "model.slm.tune=none does not train shared.weight, which hold the new embeddings of the tokens added by "
            "model.slm.keep_whitespace and model.slm.keep_characters; use model.slm.tune=full, or a regular expression "
            "that matches them too",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_keep_text_are_refused(files, slm_folder, capsys, arguments, complaint) -> None:
    assert train(slm_folder, f"model.llm.name={slm_folder}", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llm2slm: error")]
    assert errors == [f"llm2slm: error: {complaint}"]


@pytest.mark.slow
def test_keys_without_effect_are_reported_as_not_read(files, slm_folder, capsys) -> None:
    named = [f"model.llm.name={slm_folder}", "data=json", "data.train=train.jsonl", "task=instruction"]
    short = ["task.max_new_tokens=2", "trainer.progress=false", "hydra.run.dir=labels"]
    assert main(["label", *named, *short, "model.llm.keep_whitespace=true"]) == 0
    told = warnings(capsys.readouterr())
    assert told == [
        "llm2slm: warning: given and not read by label: model.llm.keep_whitespace=true (read by train, demo, encode)"
    ]
    assert train(slm_folder, "model.llm.keep_characters=3") == 0
    told = warnings(capsys.readouterr())
    assert told[-1] == (
        "llm2slm: warning: given and not read by train: model.llm.keep_characters=3 (read with model.kind=llm)"
    )


@pytest.mark.slow
def test_a_lossless_tokenizer_gets_no_added_token(files, tmp_path_factory, capsys) -> None:
    whole = write_tiny_t5(tmp_path_factory.mktemp("zoo") / "whole")
    assert train(whole, "model.slm.keep_whitespace=true") == 0
    shown = capsys.readouterr()
    assert f"tokenizer {whole}: loses none of the requested text: no token is added" in shown.err
    assert not Path("run/tokenizers").exists()
    assert not any("cannot be written" in line for line in warnings(shown))


def test_all_overlong_rows_are_counted_and_shown_before_the_error(files, slm_folder, capsys) -> None:
    assert train(slm_folder, "data.max_response_tokens=3", "data.max_prompt_tokens=2") == 2
    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "rows 4 2 2" in lines
    assert "prompts too long 4 1 2" in lines
    assert "responses too long 3 0 0" in lines
    [error] = [line for line in shown.err.splitlines() if line.startswith("llm2slm: error")]
    assert error.startswith(
        "llm2slm: error: data=json, train, row 0 (from 0): its prompt has 4 tokens, at most 2 are allowed; too long in "
        "train: 4 of 4 prompts, 3 of 4 responses; in validation: 1 of 2 prompts, 0 of 2 responses; in test: 2 of 2 "
        "prompts, 0 of 2 responses; raise data.max_prompt_tokens"
    )
    assert not Path("run/config.yaml").exists()


@pytest.mark.slow
def test_a_tokenizer_that_does_not_suit_a_script_is_warned_of(files, tmp_path_factory, capsys) -> None:
    letters = write_tiny_t5(tmp_path_factory.mktemp("zoo") / "letters")
    texts = [{"source": "große Vögel jagen", "target": "quirky words flew by, vexing jazz fans"} for _ in range(9)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    assert train(letters) == 0
    [told] = [line for line in warnings(capsys.readouterr()) if "tokens per byte" in line]
    assert told.startswith(f"llm2slm: warning: the SLM's tokenizer ({letters}) encodes this corpus with 0.")
    assert "tokens per byte (UTF-8), at least 3 times the usual 0.22:" in told


def test_a_warning_states_the_training_corpora_of_the_built_in_llm(capsys) -> None:
    config = RunConfig()
    config.model.llm.name = "builtin/llm"
    warn_builtin_encoder(config)
    assert capsys.readouterr().err == "", "on its own corpus"
    config.data.name = "json"
    warn_builtin_encoder(config)
    told = capsys.readouterr().err
    assert told.startswith("llm2slm: warning: builtin/llm was trained only on the built-in corpora (generated English-")
    assert told.count("\n") == 1 and "does not suit json" in told
    config.model.kind = SystemKind.slm
    warn_builtin_encoder(config)
    assert capsys.readouterr().err == "", "nothing of it is used"
    config.optim.distill = 0.5
    warn_builtin_encoder(config)
    assert capsys.readouterr().err == told
    parts = [PartConfig(name="builtin"), PartConfig(name="samsum")]
    warn_builtin_llm([None, "builtin/llm"], DataConfig(name="mixture", parts=parts))
    assert "does not suit samsum;" in capsys.readouterr().err


def test_a_verb_that_uses_the_built_in_llm_warns_of_it(files, capsys) -> None:
    named = ["model.llm.name=builtin/llm", "data=json", "data.train=test.jsonl", "task=instruction"]
    assert main(["label", *named, "task.max_new_tokens=2", "trainer.progress=false", "hydra.run.dir=labels"]) == 0
    [told] = warnings(capsys.readouterr())
    assert "builtin/llm was trained on" in told
