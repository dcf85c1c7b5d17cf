"""Decoding settings in a model's generation_config.json: those on an explicit list are applied, others dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sampling import representatives
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, CompileConfig, GenerationConfig

from llm2slm.config import ModelConfig, SLMConfig
from llm2slm.data.tokenization.keeping import keeping
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading import published
from llm2slm.testing import tiny_model_config, tiny_tokenizer, write_tiny_gpt2, write_tiny_t5
from llm2slm.types import SystemKind, UserError
from tests.data.kinds import KINDS

AUTO = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}
TEXTS = ["two little dogs see it", "it", "the old house"]
SAID = "settings of its generation_config.json not used: "

DROPPED: dict[str, Any] = {
    "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    "output_attentions": True, "output_hidden_states": True, "penalty_alpha": 0.6, "dola_layers": "low",
    "low_memory": True, "num_beam_groups": 2, "diversity_penalty": 0.5, "constraints": ["x"],
    "force_words_ids": [[5]], "guidance_scale": 1.5, "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2,
    "speculation_type": "mtp", "use_mtp": True, "is_assistant": True, "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.3, "assistant_early_exit": 2,
    "assistant_ensemble_weight": 0.5, "assistant_lookbehind": 4, "target_lookbehind": 4,
    "encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 1, "token_healing": True, "stop_strings": ["e"],
    "max_time": 1e-9, "use_cache": False, "cache_implementation": "static", "cache_config": {"max_cache_len": 3},
    "max_cache_len": 3, "compile_config": {"mode": "default"}, "disable_compile": True, "prefill_chunk_size": 1,
    "continuous_batching_config": {"block_size": 2},
}  # fmt: skip
"""For each dropped field a value that would have an effect."""
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 30.0, "top_k": 3, "top_p": 0.5}
KEPT: dict[str, Any] = {
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_length": 8, "min_new_tokens": 8,
    "exponential_decay_length_penalty": [1, 50.0], "bad_words_ids": [[71], [118]],
    "suppress_tokens": [71], "begin_suppress_tokens": [71], "forced_bos_token_id": 6,
    "forced_eos_token_id": 1, "sequence_bias": [[[71], -50.0], [[24], -50.0]], "num_beams": 4, "length_penalty": 3.0,
    "early_stopping": True, "renormalize_logits": True, "remove_invalid_values": True,
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 20.0, "hashing_key": 3, "context_width": 1,
                            "seeding_scheme": "lefthash"},
}  # fmt: skip
"""A value for each field that is applied."""
CHANGING = set(KEPT) - {
    "min_length", "min_new_tokens", "renormalize_logits", "remove_invalid_values", "forced_eos_token_id",
    "length_penalty", "early_stopping",
}  # fmt: skip
"""Fields whose value changes an answer of the tiny model within six tokens."""
UNREADABLE = "compile_config"
"""transformers cannot load the file that it saved with this field, before anything is built."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


def folder(zoo: Path, kind: str, **settings: Any) -> Path:
    """A tiny model with these published settings."""
    place = zoo / f"{kind}-{len(list(zoo.iterdir()))}"
    write_tiny_gpt2(place, seed=3) if kind == "gpt2" else write_tiny_t5(place, seed=3, decoder_layers=2)
    path = place / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return place


def of_transformers(place: Path, **arguments: Any) -> list[str]:
    """The output of transformers' `generate`, text by text, with the settings of the folder."""
    kind = "gpt2" if "gpt2" in place.name else "t5"
    model, tokenizer = AUTO[kind].from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        written = model.generate(ids, **arguments)[0]
        found.append(tokenizer.decode(written[ids.shape[1] :] if kind == "gpt2" else written, skip_special_tokens=True))
    return found


def test_every_field_of_transformers_is_listed_as_kept_or_dropped() -> None:
    """A new field of a new release fails here: add it to one of the lists."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    lists = [*published.KEPT, *published.GREEDY, *published.DROPPED]
    assert len(lists) == len(set(lists))
    assert fields - set(lists) == set()
    assert set(lists) - fields == set()
    assert set(DROPPED) == set(published.DROPPED)
    assert set(SAMPLED) == set(published.GREEDY)


CHANGED = [item for item in (DROPPED | SAMPLED).items() if item[0] != UNREADABLE]


@pytest.mark.parametrize("kind", representatives(["t5", "gpt2"], ["gpt2"]))
@pytest.mark.parametrize(
    ("name", "value"),
    representatives(
        CHANGED,
        lambda item: item[0] in SAMPLED or item[0].startswith(("num_", "output_", "max_", "use_", "encoder_")),
    ),
)
def test_a_dropped_setting_has_no_effect_and_is_named_once(
    zoo: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str, value: Any
) -> None:
    plain = folder(zoo, kind)
    expected = of_transformers(plain, max_new_tokens=6)
    beams = {"num_beams": 2} if name in ("num_beam_groups", "num_return_sequences") else {}
    path = folder(zoo, kind, **{name: value}, **beams)
    capsys.readouterr()
    model = LLM2SLM.from_pretrained(path)
    dropped_lines = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(dropped_lines) == 1 and dropped_lines[0].startswith(f"llm2slm: {path}: {SAID}{name}=")
    assert model.generate_text(TEXTS, max_new_tokens=6, num_beams=1) == expected
    model.save_pretrained(path / "again")
    capsys.readouterr()
    LLM2SLM.from_pretrained(path / "again")
    assert SAID not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    representatives(
        KEPT.items(),
        lambda item: item[0] in SAMPLED or item[0].startswith(("num_", "output_", "max_", "use_", "encoder_")),
    ),
)
def test_a_kept_setting_has_the_effect_that_it_has_in_transformers(
    zoo: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    beams = {"num_beams": 4} if name in published.OF_BEAMS else {}
    path = folder(zoo, "t5", **{name: value}, **beams)
    capsys.readouterr()
    model = LLM2SLM.from_pretrained(path)
    assert SAID not in capsys.readouterr().err
    found = [model.generate_text([text], max_new_tokens=6)[0] for text in TEXTS]
    assert found == of_transformers(path, max_new_tokens=6)
    if name in CHANGING:  # otherwise the comparison above detects nothing
        assert found != of_transformers(folder(zoo, "t5"), max_new_tokens=6)


def test_a_file_that_transformers_refuses_is_reported_on_one_line(zoo: Path) -> None:
    config = GenerationConfig(compile_config=CompileConfig())
    assert published.drop_unsupported(config, 9).keys() == {UNREADABLE} and config.compile_config is None
    path = folder(zoo, "t5", **{UNREADABLE: DROPPED[UNREADABLE]})
    with pytest.raises(UserError, match=rf"^model '{path}' cannot be read: .*compile_config"):
        LLM2SLM.from_pretrained(path)


def test_a_value_without_effect_is_not_reported(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    idle = {**published.IDLE, "output_attentions": False, "do_sample": False, "top_k": 0, "penalty_alpha": 0.0}
    path = folder(zoo, "t5", **idle)
    capsys.readouterr()
    LLM2SLM.from_pretrained(path)
    assert SAID not in capsys.readouterr().err


@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_a_hybrid_generates_one_answer_for_each_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slm: str
) -> None:
    cfg = tiny_model_config(tmp_path, slm=slm)
    plain = build_model(cfg)
    path = Path(str(cfg.slm.name)) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | DROPPED | SAMPLED | {UNREADABLE: None}))
    capsys.readouterr()
    model = build_model(cfg)
    dropped_lines = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(dropped_lines) == 1
    assert all(f"{name}=" in dropped_lines[0] for name in ("num_return_sequences", "stop_strings", "do_sample"))
    model.load_state_dict(plain.state_dict())
    expected = plain.generate_text(TEXTS, max_new_tokens=6)
    assert model.generate_text(TEXTS, max_new_tokens=6) == expected
    # arguments of the caller are applied
    several = model.generate_text(TEXTS, max_new_tokens=6, num_return_sequences=2, num_beams=2)
    assert len(several) == 2 * len(TEXTS)
    assert model.generate_text(TEXTS, max_new_tokens=6, return_dict_in_generate=True) == expected


def test_stop_strings_in_the_generation_config_need_no_tokenizer_argument(tmp_path: Path) -> None:
    model = build_model(tiny_model_config(tmp_path))
    by_argument = model.generate_text(TEXTS, max_new_tokens=6, stop_strings=["e"])
    model.generation_config.stop_strings = ["e"]
    assert model.generate_text(TEXTS, max_new_tokens=6) == by_argument


OF_TOKENS: dict[str, Any] = {name: KEPT[name] for name in published.OF_TOKENS} | {"forced_eos_token_id": 7}
"""A value for each setting that consists of token ids, none of them the eos."""
PLAIN: dict[str, Any] = {"repetition_penalty": 1.5}


def dropped_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if SAID in line]


def slm_alone(place: Path, **more: Any) -> ModelConfig:
    return ModelConfig(kind=SystemKind.slm, slm=SLMConfig(name=str(place), **more))


def applied(model: LLM2SLM) -> set[str]:
    return {name for name in published.OF_TOKENS if getattr(model.slm.generation_config, name) is not None}


def test_token_ids_of_another_tokenizer_are_dropped(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(zoo, "t5", **OF_TOKENS, **PLAIN, eos_token_id=[1, 9])
    tiny_tokenizer("slm").save_pretrained(zoo / "writer")
    tiny_tokenizer("llm").save_pretrained(zoo / "reader")
    assert tiny_tokenizer("slm").eos_token_id == 1  # one of the published eos ids, by chance
    dropped_lines(capsys)
    model = build_model(slm_alone(place, tokenizer=str(zoo / "writer")))
    [line] = dropped_lines(capsys)
    assert all(f"{name}=" in line for name in (*published.OF_TOKENS, "eos_token_id"))
    assert line.endswith(" (token ids of another tokenizer)") and "repetition_penalty" not in line
    assert applied(model) == set() and model.slm.generation_config.eos_token_id == 1
    assert model.slm.generation_config.repetition_penalty == 1.5
    # the model's tokenizer, whether it is given or not
    for tokenizer in (None, str(zoo / "reader")):
        model = build_model(slm_alone(place, tokenizer=tokenizer))
        assert dropped_lines(capsys) == [] and applied(model) == set(published.OF_TOKENS)
        assert model.slm.generation_config.eos_token_id == [1, 9]


def test_token_ids_are_kept_if_tokens_are_only_added(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = KINDS["t5"]()
    place = write_tiny_t5(zoo / "space_pieces", tokenizer=own)
    path = place / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OF_TOKENS))
    keeping(own, True, {}, 0).save_pretrained(zoo / "kept")
    dropped_lines(capsys)
    assert applied(build_model(slm_alone(place, tokenizer=str(zoo / "kept")))) == set(published.OF_TOKENS)
    assert dropped_lines(capsys) == []


def test_a_forced_eos_is_kept_if_it_is_the_eos_of_both_tokenizers(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(zoo, "t5", forced_eos_token_id=1)
    tiny_tokenizer("slm").save_pretrained(zoo / "writer")
    dropped_lines(capsys)
    model = build_model(slm_alone(place, tokenizer=str(zoo / "writer")))
    assert dropped_lines(capsys) == [] and model.slm.generation_config.forced_eos_token_id == 1


@pytest.mark.parametrize("name", ["forced_bos_token_id", "begin_suppress_tokens"])
def test_other_ids_that_equal_the_new_eos_are_dropped(zoo: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    value = 1 if name == "forced_bos_token_id" else [1]
    place = folder(zoo, "t5", **{name: value})
    tiny_tokenizer("slm").save_pretrained(zoo / "writer")
    dropped_lines(capsys)
    model = build_model(slm_alone(place, tokenizer=str(zoo / "writer")))
    assert getattr(model.slm.generation_config, name) is None and name in dropped_lines(capsys)[0]


@pytest.mark.parametrize(
    ("settings", "dropped", "left"),
    representatives(
        [
            ({"forced_bos_token_id": 300}, "forced_bos_token_id=300", None),
            ({"forced_eos_token_id": 300}, "forced_eos_token_id=300", None),
            ({"forced_eos_token_id": [1, 300]}, "forced_eos_token_id=[300]", [1]),
            ({"suppress_tokens": [71, 900, -1]}, "suppress_tokens=[900,-1]", [71]),
            ({"suppress_tokens": ["a", 1.5, 71]}, "suppress_tokens=['a',1.5]", [71]),
            ({"bad_words_ids": [[71], []]}, "bad_words_ids=[[]]", [[71]]),
            ({"begin_suppress_tokens": [900]}, "begin_suppress_tokens=[900]", None),
            ({"bad_words_ids": [[71], [5, 900], [118]]}, "bad_words_ids=[[5,900]]", [[71], [118]]),
            ({"bad_words_ids": [[900]]}, "bad_words_ids=[[900]]", None),
            ({"sequence_bias": [[[71], -5.0], [[5, 900], 2.0]]}, "sequence_bias=[[[5,900],2.0]]", [[[71], -5.0]]),
        ],
        lambda case: case[2] is not None,
    ),
)
def test_token_ids_outside_the_vocabulary_are_dropped_and_named(
    zoo: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], dropped: str, left: Any
) -> None:
    place = folder(zoo, "t5", **settings)
    dropped_lines(capsys)
    model = LLM2SLM.from_pretrained(place)
    size = model.slm.config.vocab_size
    assert dropped_lines(capsys) == [f"llm2slm: {place}: {SAID}{dropped} (not in the vocabulary of {size})"]
    [name] = settings
    assert getattr(model.slm.generation_config, name) == left
    within = folder(zoo, "t5", **({} if left is None else {name: left}))
    assert model.generate_text(TEXTS, max_new_tokens=6) == of_transformers(within, max_new_tokens=6)
