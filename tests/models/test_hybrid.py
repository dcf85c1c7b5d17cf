"""The invariants of the design, for every LLM kind, SLM kind, conditioning and tokenizer option."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sampling import representatives
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_rows
from llm2slm.types import IGNORE_INDEX, Batch, Reps, SystemKind, UserError

PROJECTOR = {f"projector.layers.{name}" for name in ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias")}
TEXTS = [row["source"] for row in tiny_rows()]
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def slm_names(system) -> set[str]:
    """Parameter names of the SLM in transformers; with memory, without the encoder."""
    return names_by_transformers(system.slm, system.cfg.slm.name, system.cfg.conditioning == "memory")


@cache
def names_by_transformers(slm: str, folder: str, memory: bool) -> set[str]:
    auto = AutoModelForSeq2SeqLM if slm == "t5" else AutoModelForCausalLM
    attends = {"add_cross_attention": True} if memory and slm == "gpt2" else {}
    names = {name for name, _ in auto.from_pretrained(folder, **attends).named_parameters()}
    if memory:
        names = {name for name in names if not name.startswith("encoder.")}
    return {f"slm.{name}" for name in names}


def loss_of(model: LLM2SLM, batch: Batch) -> Tensor:
    return cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX)


# The LLM is frozen; projector and SLM are trained


def test_training_changes_projector_and_slm_only(system) -> None:
    model = system.build().train()
    frozen = {n: t.clone() for n, t in [*model.encoder.named_parameters(), *model.encoder.named_buffers()]}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert frozen and not any(module.training for module in model.encoder.modules())
    assert model.slm.training

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)  # frozen ones included
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, system.batch).backward()
        optimizer.step()

    after = dict([*model.encoder.named_parameters(), *model.encoder.named_buffers()])
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    expected = PROJECTOR | slm_names(system)
    assert model.trainable_names() == expected
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == expected
    first, second = model.represent(system.batch), model.represent(system.batch)
    assert torch.equal(first.reps_BPE, second.reps_BPE), "the encoder's dropout is on"


def test_parameter_counts_equal_those_of_the_parts(system) -> None:
    model, slm = system.model, {n: p.numel() for n, p in system.model.named_parameters()}
    counts = model.parameter_counts()
    assert counts["trainable"] == sum(slm[name] for name in PROJECTOR | slm_names(system))
    assert counts["total"] == counts["trainable"] + sum(p.numel() for p in model.encoder.parameters())


# z is added at prompt positions only, in training as in generation


class Recorder:
    """Inputs of the SLM: the vectors of every call, and the keywords."""

    def __init__(self, model: LLM2SLM) -> None:
        self.calls: list[dict[str, Any]] = []
        self.hook = model.slm.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls.append(keywords)


def expected_slots(system, model: LLM2SLM, batch: Batch, row: int) -> list[list[float]]:
    """The prompt's vectors of one row, slot by slot; the projector is the identity."""
    reps = model.represent(batch)
    z = [vector for vector, real in zip(reps.reps_BPE[row], batch.llm_mask_BP[row], strict=True) if real]
    table = model.slm.get_input_embeddings().weight
    real_q = [q for q, real in enumerate(batch.slm_mask_BQ[row].tolist()) if real]
    embeds = [table[batch.slm_ids_BQ[row, q]] for q in real_q]
    mode = system.cfg.conditioning
    if mode == "memory":
        return [v.tolist() for v in z]
    if mode == "prepend":
        return [v.tolist() for v in [*z, *embeds]]
    if batch.align_BQP is None:
        aligned = z
    else:
        aligned = []
        for q in real_q:
            weights = [w for w, real in zip(batch.align_BQP[row, q], batch.llm_mask_BP[row], strict=True) if real]
            aligned.append(sum(w * v for w, v in zip(weights, z, strict=True)))
    assert len(aligned) == len(embeds)
    if mode == "replace":
        return [v.tolist() for v in aligned]
    return [(e + v).tolist() for e, v in zip(embeds, aligned, strict=True)]


@torch.no_grad()
def test_each_prompt_position_has_the_vector_of_the_mode(system) -> None:
    model, batch = system.build(), system.batch
    model.projector.layers = nn.Linear(24, 16, bias=False)  # z: the first 16 of the 24 values, unchanged
    model.projector.layers.weight.copy_(torch.eye(16, 24))
    represent = model.represent
    model.represent = lambda b: Reps(represent(b).reps_BPE, b.llm_mask_BP)
    recorder = Recorder(model)
    model.logits(batch)
    model.generate(batch, **EIGHT)
    trained, generated = recorder.calls[0], recorder.calls[1:]
    assert len(generated) == 8

    for keywords in (trained, generated[0]):
        memory = system.cfg.conditioning == "memory"
        if memory and system.slm == "gpt2":
            assert keywords.get("inputs_embeds") is None
            response = keywords["input_ids"]
            assert response.shape == (3, batch.labels_BT.shape[1] if keywords is trained else 1)
            assert response[:, 0].tolist() == [model.slm.config.bos_token_id] * 3
            states = keywords["encoder_hidden_states"]
        elif memory:
            states = keywords["encoder_outputs"].last_hidden_state
        elif system.slm == "t5" and "encoder_outputs" in keywords:  # generate ran the SLM's encoder on the prompt
            prompt = model.prefill(batch)
            own = model.slm.encoder(inputs_embeds=prompt.states_BQD, attention_mask=prompt.mask_BQ).last_hidden_state
            close(keywords["encoder_outputs"].last_hidden_state, own)
            states = prompt.states_BQD
        else:
            states = keywords["inputs_embeds"]
        mask = keywords["encoder_attention_mask" if memory and system.slm == "gpt2" else "attention_mask"]
        for row in range(3):
            wide = replace(batch, labels_BT=None)
            expected = torch.tensor(expected_slots(system, ProjectedTo16(model), wide, row))
            slots = states[row][mask[row] == 1] if mask.shape[1] == states.shape[1] else None
            assert slots is not None
            close(slots[: len(expected)], expected)
            response = slots[len(expected) :]  # the rest is the response, of a decoder-only SLM in training
            if system.slm == "gpt2" and keywords is trained and not memory:
                labels = batch.labels_BT[row]
                assert torch.equal(response, model.slm.transformer.wte.weight[labels[labels != IGNORE_INDEX]])
            else:
                assert len(response) == 0
    for keywords in generated[1:]:  # after the first token the inputs are token ids
        assert keywords.get("inputs_embeds") is None
        token = keywords["decoder_input_ids"] if system.slm == "t5" else keywords["input_ids"]
        assert token.shape == (3, 1)


class ProjectedTo16:
    """The model with representations truncated to the SLM's width, like by the projector of the test."""

    def __init__(self, model: LLM2SLM) -> None:
        self.slm, self.model = model.slm, model

    def represent(self, batch: Batch) -> Reps:
        reps = self.model.represent(batch)
        return Reps(reps.reps_BPE[..., :16], reps.mask_BP)


@torch.no_grad()
def test_representations_at_padding_have_no_effect(system) -> None:
    model, batch = system.model, system.batch
    reps = model.represent(batch)
    padding = batch.llm_mask_BP == 0
    assert padding.any()
    garbage = torch.where(padding.unsqueeze(-1), 99.0 * torch.randn_like(reps.reps_BPE), reps.reps_BPE)
    assert torch.equal(model.logits(batch, Reps(garbage, reps.mask_BP)), model.logits(batch, reps))
    real = torch.where(padding.unsqueeze(-1), reps.reps_BPE, reps.reps_BPE + torch.randn_like(reps.reps_BPE))
    assert not torch.allclose(model.logits(batch, Reps(real, reps.mask_BP)), model.logits(batch, reps), atol=1e-3)


@torch.no_grad()
def test_the_llm_never_sees_the_response(system) -> None:
    """The LLM runs once per batch, on prompt tokens only, and logits do not look ahead."""
    model, batch = system.model, system.batch
    seen: list[Tensor] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits = model.logits(batch)
    model.generate(batch, **EIGHT)
    hook.remove()
    assert len(seen) == 2
    assert all(torch.equal(ids, batch.llm_ids_BP) for ids in seen)
    changed = batch.labels_BT.clone()
    changed[:, 2] = 5
    close(model.logits(replace(batch, labels_BT=changed))[:, :3], logits[:, :3])


@torch.no_grad()
def test_every_slm_gets_an_explicit_mask(system, monkeypatch) -> None:
    """transformers warns of ids that may be padding if a decoder-only model gets no mask."""
    model, batch = system.model, system.batch

    def warn(_: Any, ids: Tensor, mask: Tensor | None) -> None:
        assert mask is not None, ids

    monkeypatch.setattr(PreTrainedModel, "warn_if_padding_and_no_attention_mask", warn)
    model.logits(batch)


def test_teacher_forced_logits_equal_those_of_generation(system) -> None:
    model, batch = system.model, system.batch
    output = model.generate(batch, **EIGHT, output_logits=True, return_dict_in_generate=True)
    generated = torch.stack(output.logits, dim=1)
    forced = model.logits(replace(batch, labels_BT=output.sequences[:, -8:]))
    torch.testing.assert_close(forced, generated, rtol=1e-4, atol=1e-4)


# Row by row, without a cache, and after loading


@torch.no_grad()
def test_a_padded_batch_equals_its_rows_one_by_one(system) -> None:
    model, batch = system.model, system.batch
    logits, ids = model.logits(batch), model.generate(batch, **EIGHT)
    for row in range(3):
        alone = system.alone(row)
        assert alone.slm_mask_BQ.all() and alone.llm_mask_BP.all()
        own = model.logits(alone)[0]
        close(logits[row, : len(own)], own)
        assert ids[row].tolist() == model.generate(alone, **EIGHT)[0].tolist()


def test_generate_text_keeps_the_order_for_every_batch_size(system) -> None:
    model = system.model
    texts = [*TEXTS, *reversed(TEXTS[:2])]
    alone = {text: model.generate_text([text], max_new_tokens=8)[0] for text in TEXTS}
    one_by_one = [alone[text] for text in texts]
    assert len(set(one_by_one)) > 1
    for size in (2, 32):
        assert model.generate_text(texts, batch_size=size, max_new_tokens=8) == one_by_one


@torch.no_grad()
def test_cached_greedy_generation_equals_the_plain_loop(system) -> None:
    """Each token is the most likely one after its predecessors, which are those of the loop."""
    model = system.model
    keep = {"output_logits": True, "return_dict_in_generate": True, **EIGHT}
    cached, plain = (model.generate(system.batch, **keep, use_cache=use_cache) for use_cache in (True, False))
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-4)
    assert torch.equal(cached.sequences, plain.sequences)
    for row, ids in enumerate(cached.sequences[:, -8:]):
        steps = model.logits(replace(system.alone(row), labels_BT=ids.unsqueeze(0)))[0]
        steps[:, 1] = -torch.inf  # no eos: min_new_tokens
        assert steps.argmax(-1).tolist() == ids.tolist()


@torch.no_grad()
def test_a_loaded_model_equals_the_saved_one_and_the_llm_is_not_saved(system, tmp_path) -> None:
    model = system.model
    model.save_pretrained(tmp_path)
    expected = PROJECTOR | slm_names(system)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == expected
    assert not [name for name in model.state_dict() if name.startswith("encoder.")]
    assert expected <= set(model.state_dict())

    again = LLM2SLM.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(again.logits(system.batch), model.logits(system.batch))
    assert again.generate_text(TEXTS, max_new_tokens=8) == model.generate_text(TEXTS, max_new_tokens=8)
    assert again.trainable_names() == expected


@torch.no_grad()
def test_the_state_dict_loads_into_a_new_model(system) -> None:
    model, fresh = system.model, system.build()
    for parameter in fresh.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    state = model.state_dict()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.logits(system.batch), model.logits(system.batch))
    state.pop("projector.layers.1.weight")
    with pytest.raises(RuntimeError, match=r"projector\.layers\.1\.weight"):
        fresh.load_state_dict(state)


# Features of transformers' generate


@torch.no_grad()
def test_beams_keep_their_prompt(system) -> None:
    """Each returned sequence has the log-probability that generate reports, given the prompt of its row."""
    model, batch = system.model, system.batch
    output = model.generate(
        batch, num_beams=4, num_return_sequences=2, max_new_tokens=4, min_new_tokens=4,
        length_penalty=0.0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    ids = output.sequences[:, -4:]
    assert ids.shape == (6, 4)
    for i in range(6):
        row = i // 2
        scores = model.logits(replace(system.alone(row), labels_BT=ids[i : i + 1]))[0].log_softmax(-1)
        total = sum(float(scores[t, token]) for t, token in enumerate(ids[i]))
        assert total == pytest.approx(float(output.sequences_scores[i]), abs=1e-3)
        if i % 2:
            assert ids[i].tolist() != ids[i - 1].tolist()
            assert float(output.sequences_scores[i]) <= float(output.sequences_scores[i - 1])


def test_sampling_is_seeded_and_several_answers_of_a_row_are_adjacent(system) -> None:
    model = system.model
    arguments = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    torch.manual_seed(1)
    first = model.generate_text(TEXTS, **arguments)
    assert model.generate_text(TEXTS, **arguments) != first
    torch.manual_seed(1)
    assert model.generate_text(TEXTS, **arguments) == first
    assert len(first) == 9
    assert len(set(first)) > 3
    greedy = model.generate_text(TEXTS, max_new_tokens=8)
    likeliest = model.generate_text(TEXTS, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=8)
    assert likeliest == [text for text in greedy for _ in range(2)]


class Pieces:
    """A streamer that records its token ids."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_receives_the_answer_token_by_token(system) -> None:
    alone, pieces = system.alone(0), Pieces()
    ids = system.model.generate(alone, **EIGHT, streamer=pieces)[0].tolist()
    own = system.model.slm.config
    start = [own.decoder_start_token_id] if system.slm == "t5" else []
    if system.slm == "gpt2" and system.cfg.conditioning == "memory":
        start = [own.bos_token_id]
    assert pieces.ids == start + ids
    assert pieces.ended


def test_stop_strings_end_the_answer(system) -> None:
    model, alone = system.model, system.alone(2)
    tokenizer = model.collator.slm_tokenizer
    with torch.no_grad():  # letters only, so that the text of each token is plain
        letters = [token for token in range(model.slm.config.vocab_size) if tokenizer.decode([token]).isalpha()]
    banned = sorted(set(range(model.slm.config.vocab_size)) - set(letters))
    arguments = {"max_new_tokens": 8, "suppress_tokens": banned}
    ids = model.generate(alone, **arguments)[0].tolist()
    pieces = [tokenizer.decode([token]) for token in ids]
    text = "".join(pieces)
    stop = pieces[3]
    end = next(i for i in range(8) if stop in "".join(pieces[: i + 1]))
    stopped = model.generate(alone, **arguments, stop_strings=[stop])[0].tolist()
    assert len(text) >= 8
    assert stopped == ids[: end + 1]
    assert len(stopped) < 8


# LLM alone, SLM alone


@pytest.mark.parametrize("beams", representatives([1, 3], [3]))
@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("kind", [SystemKind.llm, SystemKind.slm])
def test_systems_without_conditioning_equal_transformers_models(build, tmp_path, kind, family, beams) -> None:
    model = build(family, family, kind=kind)
    side = tmp_path / "saved"
    model.save_pretrained(side)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    own, tokenizer = auto.from_pretrained(side), AutoTokenizer.from_pretrained(side)  # a plain transformers folder
    if family == "t5":
        own.config.decoder_layers = (
            own.config.num_decoder_layers
        )  # sizes the cache of a decoder that is deeper than its encoder
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        new = own.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=beams, do_sample=False
        )[0, 1 if family == "t5" else ids.shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    again = LLM2SLM.from_pretrained(side)
    for system in (model, again):
        assert system.kind is kind
        assert system.projector is None and system.encoder is None
        assert system.generate_text(TEXTS, max_new_tokens=8, num_beams=beams) == expected
        assert system.trainable_names() == {f"slm.{name}" for name, _ in own.named_parameters()}


# Errors of from_pretrained


@pytest.fixture
def saved(build, tmp_path) -> Path:
    build().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("projector.layers.1.bias"), r"tensor projector\.layers\.1\.bias is missing from the file"),
        (lambda t: t.update(other=torch.ones(1)), "tensor other is unexpected in the file"),
        (
            lambda t: t.update({"projector.layers.3.bias": torch.ones(3)}),
            r"projector\.layers\.3\.bias has shape \(3,\).*ask for \(16,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(saved, change, message) -> None:
    rewrite(saved, change)
    with pytest.raises(UserError, match=message):
        LLM2SLM.from_pretrained(saved)


def test_a_folder_without_weights_is_refused(saved) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        LLM2SLM.from_pretrained(saved)


def test_a_missing_model_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        LLM2SLM.from_pretrained(tmp_path / "nothing")


def test_a_moved_llm_is_given_by_its_new_path(build, zoo, saved) -> None:
    from transformers import AutoModel

    expected = LLM2SLM.from_pretrained(saved).generate_text(TEXTS, max_new_tokens=8)
    old, new = zoo / "llm_t5", zoo / "moved"
    old.rename(new)
    try:
        with pytest.raises(UserError, match=r"llm_t5.*no such folder.*llm=PATH"):
            LLM2SLM.from_pretrained(saved)
        again = LLM2SLM.from_pretrained(saved, llm=new)
        assert again.generate_text(TEXTS, max_new_tokens=8) == expected
        loaded = AutoModel.from_pretrained(new).get_encoder().state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in again.encoder.body.state_dict().items())
    finally:
        new.rename(old)


def test_an_llm_of_another_width_is_refused(saved, tmp_path) -> None:
    from llm2slm.testing import write_tiny_t5

    with pytest.raises(UserError, match=r"width 24, .*other has 16; give the right one with llm=PATH"):
        LLM2SLM.from_pretrained(saved, llm=write_tiny_t5(tmp_path / "other", width=16))


def test_generate_text_restores_the_mode_and_generates_without_dropout(build) -> None:
    model = build()
    expected = model.generate_text(TEXTS, max_new_tokens=8)
    model.train()
    assert model.generate_text(TEXTS, max_new_tokens=8) == expected
    assert model.training and model.slm.training and not model.encoder.body.training


def test_a_single_string_is_refused_as_a_list_of_texts(build) -> None:
    with pytest.raises(UserError, match=r"write \[text\]"):
        build().generate_text("the dog")


CLIENT = """
import sys
from transformers import AutoModel, AutoTokenizer
from llm2slm import LLM2SLM
model = AutoModel.from_pretrained(sys.argv[1])
print(type(model).__name__, model.generate_text([sys.argv[2]], max_new_tokens=8))
print(AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2])["input_ids"])
"""


@pytest.mark.slow  # test_hub.py, in the default run, loads a hybrid in a new process
@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_the_auto_classes_load_a_hybrid_in_a_new_process(build, tmp_path, slm) -> None:
    model = build("t5", slm, "add", "offsets")
    model.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path), TEXTS[0]], capture_output=True, text=True, check=True
    )
    name, *rest = done.stdout.splitlines()
    assert name == f"LLM2SLM {model.generate_text(TEXTS[:1], max_new_tokens=8)}"
    assert rest == [str(model.collator.slm_tokenizer(TEXTS[0])["input_ids"])]


def test_unsupported_arguments_are_refused(saved) -> None:
    with pytest.raises(TypeError, match=r"takes name, llm, revision, dtype, .*, not subfolder"):
        LLM2SLM.from_pretrained(saved, subfolder="model")
