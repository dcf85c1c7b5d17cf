"""Beam search and other settings of transformers' `generate` over our steps equal `generate` over the SLM itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from matrix import CELLS, FEW, Cell
from sampling import representatives
from test_loop import FEW_SYSTEMS, LENGTH, SYSTEMS, TEXTS, VARIED, end_at_different_steps
from torch import Tensor, nn
from transformers import LogitsProcessorList, MinLengthLogitsProcessor, WatermarkingConfig

from llm2slm.decoding import choose
from llm2slm.decoding.choice import OF_THE_MODEL
from llm2slm.decoding.decoder import GenerateDecoder
from llm2slm.decoding.forward import Forward
from llm2slm.decoding.int8 import Int8
from llm2slm.decoding.loop import LoopDecoder, settings
from llm2slm.decoding.static import StaticForward, misfit
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import Batch, Decoding, UserError

KINDS: dict[str, Callable[[LLM2SLM], LoopDecoder]] = {
    "eager": lambda model: LoopDecoder(model, Forward(model), "eager"),
    "captured": lambda model: LoopDecoder(model, StaticForward(model), "captured"),
}
OF_EACH_PROMPT = [cell for cell in FEW if cell[2] in ("kv", "cross_attention", "memory", "add")]
"""Systems with each kind of prompt; the other conditionings only change the states of one."""
SCORED = {"return_dict_in_generate": True, "output_scores": True}


def check_equal(model: LLM2SLM, batch: Batch, **arguments: Any) -> Tensor:
    """Ids and scores of our decoders are those of `generate` with the same random numbers; returns the ids."""
    if "max_length" not in arguments:
        arguments = {"max_new_tokens": LENGTH} | arguments
    torch.manual_seed(3)
    wanted = model.generate(batch, **arguments, **SCORED)
    for name, make_decoder in KINDS.items():
        torch.manual_seed(3)
        found: Any = make_decoder(model).generate(batch, **arguments, **SCORED)
        assert found.sequences.tolist() == wanted.sequences.tolist(), name
        if (arguments.get("num_beams") or 1) > 1:
            torch.testing.assert_close(found.sequences_scores, wanted.sequences_scores, atol=1e-4, rtol=1e-5)
        assert found.past_key_values is None
    return wanted.sequences  # type: ignore[no-any-return]


@pytest.mark.parametrize("cell", representatives(CELLS, OF_EACH_PROMPT, whole=True), ids="-".join)
def test_beam_search_of_every_system_equals_generate(cell: Cell, make: Any) -> None:
    """A batch with left or right padding, whose rows end at different steps."""
    model = make(*cell)
    batch = model.collator.batch_of_texts(TEXTS)
    model.generation_config.eos_token_id = None
    end_at_different_steps(model, batch, **VARIED)
    several = check_equal(model, batch, num_beams=3, num_return_sequences=2)
    assert len({tuple(row) for row in several.tolist()}) > 1
    check_equal(model, batch, num_beams=3, early_stopping=True, length_penalty=2.0, **VARIED)


ARGUMENTS: list[dict[str, Any]] = [
    {"num_beams": 4, "length_penalty": -2.0, "early_stopping": "never"},
    {"num_beams": 3, "repetition_penalty": 3.0, "min_length": 16},
    {"num_beams": 3, "do_sample": True, "temperature": 1.5, "top_k": 20, "num_return_sequences": 3},
    {"num_beams": 2, "max_length": 7, "bad_words_ids": [[9], [10, 11]]},
    {"num_beams": 2, "max_new_tokens": 1},
    {"do_sample": True, "typical_p": 0.5, "num_return_sequences": 2},
    {"exponential_decay_length_penalty": (2, 1.5), "sequence_bias": [[[12], 5.0]]},
    {"forced_eos_token_id": 5, "begin_suppress_tokens": [8, 9], "renormalize_logits": True},
    {"watermarking_config": WatermarkingConfig(bias=4.0)},
]


@pytest.mark.parametrize(
    ("system", "number"),
    representatives(
        [(system, number) for number in range(len(ARGUMENTS)) for system in SYSTEMS],
        lambda case: case[0] == FEW_SYSTEMS[case[1] % 2],
    ),
    ids=lambda value: "-".join(value if isinstance(value, tuple) else ARGUMENTS[value]),
)
def test_responses_with_other_settings_equal_generate(system: tuple[str, str, str], number: int, make: Any) -> None:
    model, arguments = make(*system), ARGUMENTS[number]
    batch = model.collator.batch_of_texts(TEXTS)
    end_at_different_steps(model, batch)
    found = check_equal(model, batch, **arguments)
    plain = model.generate(batch, max_new_tokens=LENGTH)
    assert found.shape != plain.shape or not torch.equal(found, plain)


@pytest.mark.parametrize(
    ("tune", "slm"),
    representatives(
        [(tune, slm) for tune in ("prompt", "prefix") for slm in ("t5", "gpt2")], [("prompt", "t5"), ("prefix", "gpt2")]
    ),
)
def test_beam_search_with_virtual_tokens_equals_generate(slm: str, tune: str, make: Any) -> None:
    pytest.importorskip("peft")
    for mode in ("add", "memory") if tune == "prefix" else ("add",):
        model = make("t5", slm, mode, tune=tune)
        for name, parameter in model.slm.named_parameters():
            if parameter.requires_grad and ("prompt" in name or "virtual" in name):
                parameter.data.normal_()
        assert misfit(model) is None
        check_equal(model, model.collator.batch_of_texts(TEXTS), num_beams=3, min_length=16)


def test_published_settings_are_applied(make: Any) -> None:
    """Beams and lengths of the model's generation config; and the length without any setting."""
    model = make("t5", "t5", "add")
    batch = model.collator.batch_of_texts(TEXTS)
    model.generation_config.eos_token_id = None
    for decoder in (make_decoder(model) for make_decoder in KINDS.values()):
        assert torch.equal(decoder.generate(batch), model.generate(batch))
        assert torch.equal(decoder.generate(batch, num_beams=2), model.generate(batch, num_beams=2))
        for name, value in {"num_beams": 3, "max_length": 9, "length_penalty": 2.0}.items():
            setattr(model.generation_config, name, value)
        found = decoder.generate(batch)
        assert torch.equal(found, model.generate(batch)) and found.shape[1] == 8
        for name, value in {"num_beams": None, "max_length": None, "length_penalty": None}.items():
            setattr(model.generation_config, name, value)


def test_a_prompt_is_processed_once(make: Any) -> None:
    """Steps compute every beam, the first pass every prompt; the graph of a session is reused for the next batch."""
    model = make("gpt2", "gpt2", "kv")
    sizes: list[int] = []
    hook = model.slm.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs.get("input_ids", kwargs.get("inputs_embeds")))), with_kwargs=True
    )
    batch = model.collator.batch_of_texts(TEXTS)
    limits = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5}
    KINDS["eager"](model).generate(batch, **limits)
    assert sizes == [3, 9, 9, 9, 9]
    decoder = KINDS["captured"](model)
    for text in TEXTS[:2]:
        sizes.clear()
        decoder.generate(model.collator.batch_of_texts([text]), **limits)
    assert sizes == [1]  # no module of the SLM is called by a captured step
    assert [session.rows for session in decoder.forward.sessions.values()] == [3]  # type: ignore[attr-defined]
    hook.remove()


@torch.no_grad()
def test_int8_beam_scores_are_sums_of_log_probabilities(make: Any) -> None:
    """A beam's score is the sum of the log-probabilities of its tokens, computed row by row in int8."""
    model = make("t5", "gpt2", "cross_attention")
    model.generation_config.eos_token_id = None
    batch, forward = model.collator.batch_of_texts(TEXTS), StaticForward(model, Int8())
    limits = {"num_beams": 3, "max_new_tokens": 6, "length_penalty": 0.0}
    found: Any = LoopDecoder(model, forward, "int8").generate(batch, **limits, **SCORED)
    state, logits_BV = forward.start(model.prefill(batch), 6)
    sums_B = torch.zeros(len(TEXTS))
    for number, ids_B in enumerate(found.sequences.T):
        sums_B += logits_BV.float().log_softmax(-1).gather(1, ids_B.unsqueeze(1)).squeeze(1)
        if number < 5:
            state, logits_BV = forward.step(state, ids_B)
    torch.testing.assert_close(found.sequences_scores, sums_B, atol=5e-2, rtol=5e-3)
    exact: Any = model.generate(batch, **limits, **SCORED)
    assert (exact.sequences_scores - found.sequences_scores).abs().max() > 1e-3  # int8 is not float32


def test_callable_arguments_are_applied(make: Any) -> None:
    """Functions and objects that are arguments of `generate`; and texts that end a response."""
    model = make("t5", "t5", "memory")
    batch = model.collator.batch_of_texts(TEXTS)
    model.generation_config.eos_token_id = None
    plain = model.generate(batch, max_new_tokens=LENGTH)
    token = int(plain[0, 2])
    processor = LogitsProcessorList([MinLengthLogitsProcessor(20, token, device=torch.device("cpu"))])
    found = check_equal(model, batch, logits_processor=processor)
    assert not (found == token).any()
    check_equal(model, batch, prefix_allowed_tokens_fn=lambda row, ids: [7 + row, 20 + len(ids)], num_beams=2)
    word = model.collator.slm_tokenizer.decode([token])
    one = model.collator.batch_of_texts(TEXTS[:1])
    assert check_equal(model, one, stop_strings=[word]).shape[1] < LENGTH


def test_scores_and_logits_are_returned(make: Any) -> None:
    model = make("gpt2", "gpt2", "add")
    batch = model.collator.batch_of_texts(TEXTS)
    arguments = {"max_new_tokens": 4, "output_logits": True, **SCORED}
    wanted, found = model.generate(batch, **arguments), KINDS["captured"](model).generate(batch, **arguments)
    for name in ("scores", "logits"):
        for step, other in zip(getattr(found, name), getattr(wanted, name), strict=True):
            torch.testing.assert_close(step, other, atol=2e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"^output_attentions=True: decoding=captured does not support it; use"):
        KINDS["captured"](model).generate(batch, output_attentions=True, **arguments)


VALUES: dict[str, Any] = {
    "prompt_lookup_num_tokens": 2, "assistant_early_exit": 1, "use_mtp": True, "penalty_alpha": 0.6,
    "dola_layers": "low", "guidance_scale": 1.5, "num_beam_groups": 2, "constraints": ["x"], "force_words_ids": [[5]],
    "use_cache": False, "cache_implementation": "static", "prefill_chunk_size": 4, "token_healing": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_need_the_model_are_refused(kind: str, make: Any) -> None:
    model = make("t5", "t5", "memory")
    decoder, batch = KINDS[kind](model), model.collator.batch_of_texts(TEXTS)
    assert set(VALUES) == set(OF_THE_MODEL)
    for name, value in VALUES.items():
        with pytest.raises(UserError) as error:
            decoder.generate(batch, num_beams=2, **{name: value})
        assert str(error.value) == f"{name}={value}: decoding={kind} does not support it; use decoding=generate"
    with pytest.raises(UserError, match="assistant_model: not a field of a generation config; use decoding=generate"):
        decoder.generate(batch, assistant_model=nn.Identity())
    neutral = {name: value for name, value in OF_THE_MODEL.items() if hasattr(model.generation_config, name)}
    assert torch.equal(decoder.generate(batch, **neutral, max_new_tokens=3), model.generate(batch, max_new_tokens=3))


@pytest.mark.parametrize("kind", [*KINDS, "generate"])
def test_all_responses_but_those_of_beam_search_are_streamed(kind: str, make: Any) -> None:
    """Including those that transformers generates token by token."""
    model = make("t5", "t5", "memory")
    decoder: Any = KINDS[kind](model) if kind in KINDS else GenerateDecoder(model)
    batch, steps = model.collator.batch_of_texts(TEXTS), []

    def receive(_: Tensor, ids_KN: Tensor, __: Tensor) -> None:
        steps.append(ids_KN)

    with pytest.raises(UserError, match=r"^num_beams=2: beam search has no tokens to stream before its end; use"):
        decoder.generate(batch, on_tokens=receive, num_beams=2)
    assert not steps
    model.generation_config.eos_token_id = None
    found = decoder.generate(batch, on_tokens=receive, max_new_tokens=5, bad_words_ids=[[9]])
    assert torch.equal(torch.cat(steps, dim=1), found)


def test_auto_measures_beams(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    monkeypatch.setenv("LLM2SLM_CACHE", str(tmp_path))
    measured: list[int] = []

    def measure(decoders: Any, _: Any, num_beams: int) -> dict[str, float]:
        measured.append(num_beams)
        return {name: float(name != ("captured" if num_beams > 1 else "eager")) + 1 for name in decoders}

    monkeypatch.setattr("llm2slm.decoding.auto.measure", measure)
    model = make("t5", "t5", "add")
    for beams, name in ((1, "eager"), (4, "captured"), (4, "captured"), (2, "captured"), (None, "eager")):
        assert choose.decoder(Decoding.auto, model, num_beams=beams).name == name
    assert measured == [1, 4, 2]
    assert "captured (ms for 24 tokens with num_beams=4: captured 1, eager 2, generate 2; measured now" in (
        capsys.readouterr().err
    )
    assert settings(model).num_beams in (None, 1)
