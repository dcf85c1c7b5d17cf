"""Loaders: budgets, order, resuming at any step, several processes, counts."""

from __future__ import annotations

import json
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sampling import examples, representatives

from llm2slm.config import DataConfig
from llm2slm.data.batches import BatchPlan
from llm2slm.data.collate import Collator
from llm2slm.data.datamodule import DataModule
from llm2slm.data.tasks import TASKS
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.types import IGNORE_INDEX, Overlong, UserError

LENGTHS = [(3 + 7 * i % 41, 2 + 5 * i % 23) for i in range(200)]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


# The plan of batches


@examples(60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80),
    budget=st.integers(20, 400),
    seed=st.integers(0, 99),
)
def test_an_epoch_contains_every_row_once_within_the_budget(lengths, budget, seed):
    plan = BatchPlan(lengths, budget, seed)
    for epoch in (0, 1):
        batches = plan.epoch(epoch)
        assert len(batches) == plan.batches
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        for batch in batches:
            padded = len(batch) * (max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch))
            assert padded <= budget or len(batch) == 1


def test_order_is_a_function_of_seed_and_epoch():
    plan, again, other = (BatchPlan(LENGTHS, 300, seed) for seed in (1, 1, 2))
    assert plan.epoch(3) == again.epoch(3)
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(0) != other.epoch(0)
    # not only the order of the batches changes, but also their rows
    assert {frozenset(batch) for batch in plan.epoch(0)} != {frozenset(batch) for batch in plan.epoch(1)}


def test_batches_of_similar_length_have_little_padding():
    sizes = [(batch, [sum(LENGTHS[i]) for i in batch]) for batch in BatchPlan(LENGTHS, 600, 1).epoch(0)]
    padded = sum(len(b) * (max(LENGTHS[i][0] for i in b) + max(LENGTHS[i][1] for i in b)) for b, _ in sizes)
    real = sum(sum(p) for _, p in sizes)
    unsorted = len(LENGTHS) * (max(p for p, _ in LENGTHS) + max(r for _, r in LENGTHS))
    assert padded - real < (unsorted - real) / 2


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_divide_the_batches_of_an_epoch(world):
    whole = BatchPlan(LENGTHS, 300, 5)
    plans = [BatchPlan(LENGTHS, 300, 5, rank=rank, world_size=world) for rank in range(world)]
    for epoch in (0, 4):
        parts = [plan.epoch(epoch) for plan in plans]
        assert {len(part) for part in parts} == {plans[0].batches} == {-(-whole.batches // world)}
        dealt = [part[i] for i in range(plans[0].batches) for part in parts]
        assert dealt[: whole.batches] == whole.epoch(epoch)
        assert dealt[whole.batches :] == whole.epoch(epoch)[: len(dealt) - whole.batches]


def test_with_more_processes_than_batches_each_process_has_a_batch():
    assert [BatchPlan([(1, 1)], 8, 1, rank=rank, world_size=3).epoch(0) for rank in range(3)] == [[[0]]] * 3


def test_limit_repeats_the_same_batches():
    plan = BatchPlan(LENGTHS, 300, 5, limit=2)
    assert plan.batches == 2
    assert plan.epoch(0) == plan.epoch(7)
    assert all(batch in BatchPlan(LENGTHS, 300, 5).epoch(0) for batch in plan.epoch(0))


# The module


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four five six seven"], 300)


def rows(n):
    return [{"source": "w" * (1 + i * 7 % 19), "target": f"t{i}" + "x" * (i * 5 % 11)} for i in range(n)]


@pytest.fixture
def files(tmp_path):
    for split, n in (("train", 60), ("validation", 23), ("test", 9)):
        text = "".join(json.dumps(row) + "\n" for row in rows(n))
        (tmp_path / f"{split}.jsonl").write_text(text)
    return tmp_path


def make(files, tokenizer, seed=1, limits=None, **values):
    names = {split: str(files / f"{split}.jsonl") for split in ("train", "validation", "test")}
    config = DataConfig(name="json", **({"batch_tokens": 150, "eval_batch_size": 4} | names | values))
    return DataModule(config, TASKS["instruction"], Collator(tokenizer, **(limits or {})), seed)


def test_batches_contain_the_rows_of_their_indices(files, tokenizer):
    data = make(files, tokenizer)
    seen = []
    for batch in data.train_dataloader():
        texts = data.collator.decode(batch.labels_BT)
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch.slm_ids_BQ]
        for index, text, prompt in zip(batch.indices, texts, prompts, strict=True):
            assert rows(60)[index] == {"source": prompt, "target": text}
        assert batch.labels_BT.numel() + batch.slm_ids_BQ.numel() <= 150
        seen += batch.indices
    assert sorted(seen) == list(range(60))


def test_evaluation_keeps_the_order(files, tokenizer):
    data = make(files, tokenizer)
    assert [list(batch.indices) for batch in data.test_dataloader()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [i for batch in data.val_dataloader() for i in batch.indices] == list(range(23))
    assert [example.target for example in data.examples("test")] == [row["target"] for row in rows(9)]


@pytest.mark.parametrize(("world", "size"), [(2, 4), (3, 4), (4, 2), (30, 4), (1, 50)])
def test_processes_get_equally_many_validation_batches(files, tokenizer, world, size):
    found = []
    for rank in range(world):
        data = make(files, tokenizer, eval_batch_size=size)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        found.append(list(data.val_dataloader()))
    assert len({len(batches) for batches in found}) == 1
    batches = [batch for own in found for batch in own]
    labeled = [batch for batch in batches if (batch.labels_BT != IGNORE_INDEX).any()]
    assert sorted(i for batch in labeled for i in batch.indices) == list(range(23))
    wanted = sum((batch.labels_BT != IGNORE_INDEX).sum() for batch in make(files, tokenizer).val_dataloader())
    assert sum((batch.labels_BT != IGNORE_INDEX).sum() for batch in batches) == wanted


def test_workers_do_not_change_the_batches(files, tokenizer):
    alone, helped = (make(files, tokenizer, workers=workers) for workers in (0, 2))
    assert [b.indices for b in alone.train_dataloader()] == [b.indices for b in helped.train_dataloader()]


def test_the_report_counts_rows_and_overlong_texts(files, tokenizer):
    limits = {"max_response_tokens": 8, "max_prompt_tokens": 18}
    long_p = sum(len(row["source"]) + 1 > 18 for row in rows(60))
    long_r = sum(len(row["target"]) + 1 > 8 for row in rows(60))
    either = sum(len(row["target"]) + 1 > 8 or len(row["source"]) + 1 > 18 for row in rows(60))
    assert 0 < long_p < either < long_p + long_r
    for overlong, dropped in ((Overlong.drop, either), (Overlong.truncate, 0)):
        data = make(files, tokenizer, limits={**limits, "overlong": overlong})
        kept = data.encoded("train")
        data.encoded("validation")
        report = data.report()
        assert report["train"].pop("seconds") >= 0
        assert report["train"].pop("tokens")["prompt"]["max"] == 20  # before truncation
        assert report["train"].pop("tokens_per_byte") == {"prompt": 1.0, "response": 1.0}  # one token per byte
        assert report["train"] == {
            "lost_responses": 0,
            "lost_prompts": 0,
            "lost_llm_prompts": 0,
            "rows": 60,
            "dropped": dropped,
            "overlong_prompts": long_p,
            "overlong_responses": long_r,
            "overlong": overlong.value,
        }
        assert report["validation"]["rows"] == 23
        assert len(kept) == len(data.examples("train")) == 60 - dropped
        assert all(data.examples("train")[k].index == row.index for k, row in enumerate(kept))
    assert [row.index for row in kept] == list(range(60))


def test_a_split_without_remaining_rows_is_an_error(files, tokenizer):
    data = make(files, tokenizer, limits={"max_prompt_tokens": 1, "overlong": Overlong.drop})
    with pytest.raises(UserError, match=r"data=json, test: no row is left of 9, all were over-long and dropped"):
        data.setup("test")


# Under the Trainer


class Recorder(LightningModule):
    """A model of one parameter that records every batch."""

    def __init__(self, stop_in=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.evaluated, self.stop_in, self.path = [], [], stop_in, path

    def training_step(self, batch, batch_idx):
        if self.stop_in == len(self.seen):
            raise RuntimeError("stopped")
        self.seen.append(batch.indices)
        return (self.weight - batch.labels_BT.sum()).square().sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch.indices)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def on_fit_end(self):
        if self.path is not None:
            record = {"seen": self.seen, "evaluated": self.evaluated}
            (self.path / f"rank{self.global_rank}.json").write_text(json.dumps(record))


class SaveOnException(Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


def train(data, steps, folder=None, callbacks=(), resume=None, module=None, **values):
    module = module or Recorder()
    values = {
        "max_epochs": -1,
        "limit_val_batches": 0,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    } | values
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), default_root_dir=folder, **QUIET, **values)
    trainer.fit(module, datamodule=data, ckpt_path=resume, **({"weights_only": True} if resume else {}))
    return module


@pytest.mark.parametrize("accumulate", representatives([1, 2], [2]))
def test_a_run_resumed_at_any_step_has_the_batches_of_an_uninterrupted_run(files, tokenizer, tmp_path, accumulate):
    epoch = len(make(files, tokenizer).train_dataloader())
    steps = (2 * epoch + 4) // accumulate
    saver = ModelCheckpoint(tmp_path / "all", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3, "check_val_every_n_epoch": None}
    options["limit_val_batches"] = 2
    whole = train(make(files, tokenizer), steps, tmp_path, [saver], **options)
    plan = BatchPlan(
        [(row.prompt_tokens, len(row.response)) for row in make(files, tokenizer).encoded("train")], 150, seed=1
    )
    expected = [tuple(batch) for number in range(3) for batch in plan.epoch(number)]
    assert 5 < epoch < 20
    assert whole.seen == expected[: len(whole.seen)]
    assert len(whole.seen) > 2 * epoch
    for step in range(1, steps):
        again = train(make(files, tokenizer), steps, tmp_path, resume=tmp_path / "all" / f"step={step}.ckpt", **options)
        assert again.seen == whole.seen[-len(again.seen) :], step
        assert torch.equal(again.weight, whole.weight), step


def test_an_epoch_based_run_resumes_between_epochs(files, tokenizer, tmp_path):
    epoch = len(make(files, tokenizer).train_dataloader())
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{step}", save_on_train_epoch_end=True)
    whole = train(make(files, tokenizer), -1, callbacks=[saver], max_epochs=3)
    assert len(whole.seen) == 3 * epoch
    for done in (1, 2):
        path = tmp_path / f"step={done * epoch}.ckpt"
        assert train(make(files, tokenizer), -1, resume=path, max_epochs=3).seen == whole.seen[done * epoch :]


def test_resuming_after_an_exception_repeats_the_unfinished_batch(files, tokenizer, tmp_path):
    epoch = len(make(files, tokenizer).train_dataloader())
    whole = train(make(files, tokenizer), 2 * epoch)
    for stop in (1, epoch - 1, epoch, epoch + 3):
        path = tmp_path / f"{stop}.ckpt"
        with pytest.raises(RuntimeError, match="stopped"):
            train(make(files, tokenizer), 2 * epoch, callbacks=[SaveOnException(path)], module=Recorder(stop))
        again = train(make(files, tokenizer), 2 * epoch, resume=path)
        assert again.seen == whole.seen[stop:]


def test_resuming_with_other_data_is_refused(files, tokenizer, tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="two")
    train(make(files, tokenizer), 2, callbacks=[saver])
    with pytest.raises(UserError, match=r"the checkpoint's epochs have \d+ batches, this run's \d+; to resume, use"):
        train(make(files, tokenizer, batch_tokens=90), 4, resume=tmp_path / "two.ckpt")


def test_overfitting_repeats_the_same_batches(files, tokenizer):
    seen = train(make(files, tokenizer), 6, overfit_batches=2).seen
    assert seen[:2] == seen[2:4] == seen[4:6]
    assert seen[0] != seen[1]


def test_two_processes_divide_the_batches(files, tokenizer, tmp_path):
    steps = len(make(files, tokenizer).train_dataloader())  # of one process: two epochs of two
    train(
        make(files, tokenizer),
        steps,
        tmp_path,
        module=Recorder(path=tmp_path),
        strategy="ddp_fork",
        devices=2,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
    )
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    alone = train(make(files, tokenizer), steps).seen
    per_rank = -(-steps // 2)
    dealt = [tuple(rank["seen"][i]) for i in range(per_rank) for rank in ranks]
    assert dealt[:steps] == alone
    assert dealt[steps:] == alone[: len(dealt) - steps]
    assert len(ranks[0]["seen"]) == len(ranks[1]["seen"]) == steps
    once = [list(chain.from_iterable(rank["evaluated"])) for rank in ranks]
    once = [seen[: len(seen) // 2] for seen in once]  # validated at the end of both epochs
    assert once[0] == list(range(0, 23, 2))
    assert once[1] == list(range(1, 23, 2))
