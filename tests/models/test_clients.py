"""Client code of transformers only: the Auto classes, Seq2SeqTrainer and accelerate train and use a hybrid."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ROOT, python
from sampling import representatives
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoProcessor, GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from llm2slm.data.processor import LLM2SLMProcessor
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, SystemKind, Tokenizers, UserError

TEXTS = [row["source"] for row in tiny_rows()]
HOMES = (ROOT, ROOT / "tests", ROOT / "tests" / "models")
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}


def hybrid(folder: Path, slm: str = "t5", mode: str = "add", tokenizers: str = "offsets") -> LLM2SLM:
    set_seed(3)
    return build_model(tiny_model_config(folder, "t5", slm, mode, Tokenizers(tokenizers)))


def collate(model: LLM2SLM) -> Any:
    def batch(rows: list[dict[str, str]]) -> Any:
        return model.processor([row["source"] for row in rows], [row["target"] for row in rows])

    return batch


def arguments(folder: Path, **more: Any) -> Seq2SeqTrainingArguments:
    common = {
        "learning_rate": 3e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 3, "max_grad_norm": 0.0,
        "remove_unused_columns": False, "report_to": "none", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True,
        "max_steps": 4, "save_strategy": "no",
    }  # fmt: skip
    return Seq2SeqTrainingArguments(output_dir=str(folder), **common | more)


def without_dropout(model: LLM2SLM) -> LLM2SLM:
    for module in model.modules():
        for name in ("p", "dropout", "attn_pdrop", "attention_dropout"):  # of modules of torch and of transformers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize(
    ("slm", "mode", "tokenizers"),
    representatives(
        [
            ("t5", "add", "offsets"),
            ("gpt2", "prepend", "shared"),
            ("gpt2", "cross_attention", "offsets"),
            ("t5", "memory", "shared"),
            ("gpt2", "replace", "llm_tokens"),
        ],
        lambda case: case[1] in ("add", "cross_attention"),
    ),
)
def test_seq2seq_trainer_equals_a_plain_loop(zoo: Path, tmp_path: Path, slm: str, mode: str, tokenizers: str) -> None:
    theirs, ours = (without_dropout(hybrid(zoo, slm, mode, tokenizers)) for _ in range(2))
    frozen = {name: tensor.clone() for name, tensor in theirs.encoder.state_dict().items()}
    trainer = Seq2SeqTrainer(
        theirs, arguments(tmp_path), collate(theirs), tiny_rows(), processing_class=theirs.processor
    )
    trainer.train()
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    ours.train()
    trained = [p for p in ours.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    expected = []
    for _ in range(4):
        batch = labelled(ours, [0, 1, 2])
        loss = cross_entropy(ours.logits(batch).transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, abs=2e-4)  # the Trainer rounds logged values, and the order of rows differs
    for name, tensor in theirs.encoder.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name


def test_seq2seq_trainer_evaluates_saves_and_resumes(zoo: Path, tmp_path: Path) -> None:
    model = hybrid(zoo)
    seen: list[list[str]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(model.processor.batch_decode(prediction.predictions))
        assert model.processor.batch_decode(prediction.label_ids) == [row["target"] for row in tiny_rows()]
        return {"rows": len(seen[-1])}

    def trainer(model: LLM2SLM, **more: Any) -> Seq2SeqTrainer:
        own = arguments(tmp_path / "out", predict_with_generate=True, save_strategy="steps", save_steps=2, **more)
        return Seq2SeqTrainer(
            model, own, collate(model), *[tiny_rows()] * 2, processing_class=model.processor, compute_metrics=metrics
        )

    first = trainer(model)
    first.train()
    scores = first.evaluate(**EIGHT)
    assert scores["eval_rows"] == 3 and seen == [model.eval().generate_text(TEXTS, **EIGHT)]

    saved = tmp_path / "out" / "checkpoint-4"
    loaded = AutoModel.from_pretrained(saved)
    assert isinstance(loaded, LLM2SLM)
    batch = AutoProcessor.from_pretrained(saved)(TEXTS, [row["target"] for row in tiny_rows()])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    again = trainer(hybrid(zoo), max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    whole = [row["loss"] for row in first.state.log_history if "loss" in row]
    resumed = [row["loss"] for row in again.state.log_history if "loss" in row]
    assert resumed[:4] == whole[:4] and len(resumed) == 6  # including dropout


@pytest.mark.parametrize("slm", representatives(["t5", "gpt2"], ["gpt2"]))
@pytest.mark.parametrize("tokenizers", ["shared", "offsets", "llm_tokens"])
def test_the_processor_returns_the_tensors_of_the_collator(
    zoo: Path, tmp_path: Path, slm: str, tokenizers: str
) -> None:
    model = hybrid(zoo, slm, "add", tokenizers).eval()
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.to_dict() == model.processor.to_dict()
    inputs = processor(TEXTS)
    assert set(inputs) <= set(processor.model_input_names) and ("alignment" in inputs) == (tokenizers == "offsets")
    answers = processor.batch_decode(model.generate(**inputs, **EIGHT))
    assert answers == model.generate_text(TEXTS, **EIGHT)
    assert processor.decode(model.generate(**processor(TEXTS[0]), **EIGHT)[0]) == answers[0]
    if tokenizers != "offsets":  # a single token sequence for both
        assert torch.equal(
            model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **EIGHT),
            model.generate(**inputs, **EIGHT),
        )


def test_unsupported_processor_arguments_are_refused(zoo: Path, tmp_path: Path) -> None:
    model = hybrid(zoo)
    with pytest.raises(ValueError, match="2 texts, but 1 targets"):
        model.processor(TEXTS[:2], ["a"])
    with pytest.raises(ValueError, match="return_tensors='pt'"):
        model.processor(TEXTS, return_tensors="np")
    inputs = model.processor(TEXTS)
    with pytest.raises(ValueError, match="llm_input_ids are missing"):
        model.generate(inputs["input_ids"])
    inputs.pop("alignment")
    with pytest.raises(ValueError, match="alignment is missing"):
        model.generate(**inputs)
    with pytest.raises(ValueError, match="no labels"):
        model(input_ids=inputs["input_ids"], llm_input_ids=inputs["llm_input_ids"], alignment=torch.zeros(3, 1, 1))


USER = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoProcessor
from llm2slm import LLM2SLM

model, processor = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForSeq2SeqLM, AutoProcessor))
inputs = processor(json.loads(sys.argv[2]))
print(json.dumps(processor.batch_decode(model.generate(**inputs, max_new_tokens=8, min_new_tokens=8))))
print([name for name in ("lightning", "hydra", "datasets", "wandb") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_process_with_transformers_and_llm2slm_only(zoo: Path, tmp_path: Path) -> None:
    model = hybrid(zoo, "gpt2").eval()
    model.save_pretrained(tmp_path)
    done = python("-c", USER, str(tmp_path), json.dumps(TEXTS))
    assert done.returncode == 0, done.stderr
    answers, others = done.stdout.splitlines()
    assert json.loads(answers) == model.generate_text(TEXTS, **EIGHT)
    assert others == "[]"


SCRIPT = """
import os
import sys
from pathlib import Path

import test_clients as clients

model = clients.without_dropout(clients.hybrid(Path(sys.argv[1])))
rows = clients.tiny_rows() * 2
backend = "gloo" if "RANK" in os.environ else None
own = clients.arguments(Path(sys.argv[2]), per_device_train_batch_size=int(sys.argv[3]), ddp_backend=backend)
trainer = clients.Seq2SeqTrainer(model, own, clients.collate(model), rows, processing_class=model.processor)
trainer.train()
trainer.save_model()
if trainer.is_world_process_zero():
    print("processes", own.world_size)
    print("losses", *(row["loss"] for row in trainer.state.log_history if "loss" in row))
"""


@pytest.mark.slow
def test_accelerate_launches_training_in_two_processes(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each processes half of each batch, and together they train like one process with the whole batch."""
    hybrid(zoo)  # writes the tiny models, which the processes load
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(map(str, HOMES))}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    two = python(*launch, str(script), str(zoo), str(tmp_path / "two"), "3", **environment)
    assert two.returncode == 0, two.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", [str(script), str(zoo), str(tmp_path / "one"), "6"])
    exec(compile(SCRIPT, script, "exec"), {})
    counts, losses = (
        [line.split() for line in message.splitlines()[-2:]] for message in (two.stdout, capsys.readouterr().out)
    )
    assert (counts[0][1], losses[0][1]) == ("2", "1")
    found, expected = ([float(value) for value in lines[1][1:]] for lines in (counts, losses))
    assert len(expected) == 4 and found == pytest.approx(expected, abs=1e-3)
    first, second = (LLM2SLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize(
    ("slm", "mode"),
    representatives(
        [("t5", "add"), ("t5", "memory"), ("gpt2", "add"), ("gpt2", "memory"), ("llama", "cross_attention")],
        [("t5", "memory"), ("gpt2", "add")],
    ),
)
def test_generation_configs_are_applied(zoo: Path, slm: str, mode: str) -> None:
    model = hybrid(zoo, slm, mode).eval()
    batch = model.collator.batch_of_texts(TEXTS)
    greedy = model.generate(batch, **EIGHT)
    assert torch.equal(greedy, model.generate(batch, GenerationConfig(**EIGHT)))
    wild = GenerationConfig(do_sample=True, temperature=5.0, **EIGHT)
    drawn = [model.generate(batch, wild) for _ in range(2)]
    assert not torch.equal(*drawn)
    ended = model.generate(batch, GenerationConfig(eos_token_id=int(greedy[0, 1]), max_new_tokens=8))
    cut = 1 + greedy[0].tolist().index(int(greedy[0, 1]))
    assert ended[0, :cut].tolist() == greedy[0, :cut].tolist()
    assert set(ended[0, cut:].tolist()) <= {model.collator.pad_id}
    generated = model.generate(batch, return_dict_in_generate=True, output_scores=True, **EIGHT)
    assert torch.equal(generated.sequences, greedy) and len(generated.scores) == 8
    start = slm == "t5" or mode == "memory"  # transformers counts the start token
    assert model.generate(batch, max_length=9, min_new_tokens=9 - start).shape[1] == 9 - start
    with pytest.raises(UserError, match="exceeds the SLM's 512 positions") if slm != "t5" else nullcontext():
        model.generate(batch, GenerationConfig(max_new_tokens=600) if slm != "t5" else None, max_new_tokens=600)
    model.generation_config = wild
    assert not torch.equal(model.generate(batch), model.generate(batch))


@pytest.mark.slow
def test_a_plain_slm_is_trained_and_resumed_and_resuming_lora_is_refused(zoo: Path, tmp_path: Path) -> None:
    def slm() -> LLM2SLM:
        set_seed(3)
        return build_model(tiny_model_config(zoo, slm="gpt2", kind=SystemKind.slm))

    def trainer(model: LLM2SLM, folder: Path, **more: Any) -> Seq2SeqTrainer:
        own = arguments(folder, save_strategy="steps", save_steps=2, **more)
        return Seq2SeqTrainer(model, own, collate(model), tiny_rows(), processing_class=model.processor)

    whole = trainer(slm(), tmp_path / "slm")
    whole.train()
    again = trainer(slm(), tmp_path / "slm")
    again.train(resume_from_checkpoint=str(tmp_path / "slm" / "checkpoint-2"))
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert AutoProcessor.from_pretrained(tmp_path / "slm" / "checkpoint-4").to_dict() == whole.model.processor.to_dict()

    def lora() -> LLM2SLM:
        config = tiny_model_config(zoo, slm="gpt2")
        config.slm.tune = "lora"
        return build_model(config)

    trainer(lora(), tmp_path / "lora").train()
    assert LLM2SLM.from_pretrained(tmp_path / "lora" / "checkpoint-4").generate_text(TEXTS, **EIGHT)
    with pytest.raises(ValueError, match="LoRA adapters cannot continue from saved weights"):
        trainer(lora(), tmp_path / "lora").train(resume_from_checkpoint=str(tmp_path / "lora" / "checkpoint-2"))


def test_unsupported_arguments_of_saving_and_loading_are_refused(zoo: Path, tmp_path: Path) -> None:
    model = hybrid(zoo)
    with pytest.raises(TypeError, match="not push_to_hub"):
        model.save_pretrained(tmp_path / "a", push_to_hub=True)
    model.save_pretrained(tmp_path / "a", is_main_process=False)
    assert not (tmp_path / "a").exists()
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "processor_config.json").unlink()
    for place, message in ((tmp_path / "a", "gets one when it is saved again"), (tmp_path / "b", "no such folder")):
        with pytest.raises(UserError, match=message):
            LLM2SLMProcessor.from_pretrained(place)
