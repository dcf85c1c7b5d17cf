"""data.streaming: every row once per pass, for any buffer and number of processes; exact resume; lazy reading."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice

import hub_tables
import pytest
import torch
from command_line import mistake, tiny_overrides
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from sampling import examples, representatives
from test_datamodule import Recorder, SaveOnException, train

from llm2slm.cli import main
from llm2slm.config import DataConfig, TaskConfig
from llm2slm.data.batches import shared_batches
from llm2slm.data.collate import Collator
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import load_rows, stream_rows, task_of
from llm2slm.data.streaming import Position, RowStream
from llm2slm.data.tasks import TASKS
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.data.tokenized_corpus import FIRST_ROWS
from llm2slm.types import Labels, Overlong, UserError

SPLITS = ("train", "validation", "test")


@examples(80)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=60),
    budget=st.integers(20, 400),
    world=st.integers(1, 5),
)
def test_processes_have_equal_numbers_of_batches_and_every_row_is_in_one_batch(lengths, budget, world):
    lengths = lengths * world  # a multiple of the number of processes
    batches = shared_batches(lengths, budget, (1, 2), world)
    assert len(batches) % world == 0
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch))
        assert padded <= budget or len(batch) == 1
    assert shared_batches(lengths, budget, (1, 2), world) == batches
    assert len(lengths) < 8 or shared_batches(lengths, budget, (1, 3), world) != batches


# Lazy reading


def row(n):
    return {"source": "w" * (1 + n * 7 % 19), "target": f"t{n}" + "x" * (n * 5 % 11)}


def write(folder, n, name="train.jsonl"):
    return hub_tables.write_file(folder / name, [row(i) for i in range(n)])


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.csv", "train.parquet"])
def test_a_file_is_streamed_with_the_rows_of_reading_at_once(tmp_path, name):
    data = DataConfig(name="json", train=str(write(tmp_path, 2_300, name)))
    task = task_of(TaskConfig(), data)
    whole = load_rows(data, "train", 1)
    assert list(stream_rows(data, task)) == whole
    for skip in (1, 999, 1_000, 2_299, 2_300, 5_000):
        assert list(stream_rows(data, task, skip)) == whole[skip:]
    data.train_size = 1_200
    assert list(stream_rows(data, task, 1_100)) == whole[1_100:1_200]


def test_corpora_of_the_hub_and_of_a_folder_are_streamed_with_the_rows_of_reading_at_once(tmp_path):
    hub_tables.write_local("multi30k", tmp_path)
    for corpus in ("wmt14_en_de", "dolly", "samsum"):
        hub_tables.write(corpus, tmp_path / "hub" / corpus)
        data = DataConfig(name=corpus, path=str(tmp_path / "hub" / corpus))
        task = task_of(TaskConfig(), data)
        whole = load_rows(data, "train", 1, task.templates)
        assert len(whole) == 6
        assert list(stream_rows(data, task)) == whole
        assert list(stream_rows(data, task, 4)) == whole[4:]
    local = DataConfig(name="multi30k", root=str(tmp_path), target="cs")
    assert list(stream_rows(local, task_of(TaskConfig(), local))) == load_rows(local, "train", 1)
    piece = DataConfig(name="dolly", path=str(tmp_path / "hub" / "dolly"), train="train[10:14]")
    task = task_of(TaskConfig(), piece)
    assert list(stream_rows(piece, task, 1)) == load_rows(piece, "train", 1, task.templates)[1:]


def test_rows_are_read_on_demand(tmp_path):
    """An invalid line at the end of a file is reported only when it is reached."""
    lines = [json.dumps(row(n) | {"more": "x" * 20_000}) for n in range(3_000)]
    lines[2_900] = lines[2_900][:-1]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines))
    rows = stream_rows(DataConfig(name="json", train=str(path)), TASKS["instruction"])
    assert list(islice(rows, 1_000)) == [row(n) for n in range(1_000)]
    with pytest.raises(UserError, match=rf"^{path}, line 2901: not JSON \("):
        list(rows)


def test_errors_in_rows_and_settings_are_reported(tmp_path):
    path = hub_tables.write_file(
        tmp_path / "a.jsonl", [*[row(n) for n in range(1_500)], {"source": "s", "target": None}]
    )
    task = TASKS["instruction"]

    def complaint(**values):
        with pytest.raises(UserError) as caught:
            list(stream_rows(DataConfig(**({"name": "json", "train": str(path)} | values)), task, 1_200))
        return str(caught.value)

    assert (
        complaint()
        == f"{path}, line 1501, column 'target': expected text, found null; fill it in, or leave the row out"
    )
    found = f"{path}, line 1201: no column 'sauce' (data.source); did you mean 'source'?"
    assert complaint(source="sauce").startswith(found)
    assert complaint(train=str(tmp_path / "none.jsonl")).endswith("give a json, jsonl, csv, tsv or parquet file")
    assert complaint(name="builtin").startswith("data.streaming=true: data=builtin is made in memory")
    assert complaint(name="mixture").startswith("data.streaming=true: data=mixture is made in memory")
    assert complaint(labels=Labels.llm, labels_from=str(tmp_path)) == (
        "data.streaming=true: rows are read with the targets of the corpus, not with data.labels=llm; set "
        "data.streaming=false, or stream the file of labels itself (data=json data.train=DIR/labels.jsonl "
        "data.source=source data.target=prediction)"
    )
    assert complaint(labels=Labels.mix).startswith("data.streaming=true: rows are read with the targets of the corpus")
    assert complaint(name="hub", train=None, path="nobody/nothing").startswith(
        "nobody/nothing, split train: not loaded ("
    )
    assert complaint(name="hub", train="dev", path=str(tmp_path)).startswith(
        f"{tmp_path}, split dev: not loaded (no split 'dev'; there are: train)"
    )


# Chunks


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four five six seven"], 300)


def stream(tokenizer, n=10, buffer=4, world=1, limit=64, label=""):
    collator = Collator(tokenizer, overlong=Overlong.drop, max_response_tokens=limit)
    rows = [row(i) for i in range(n)]
    return RowStream(
        lambda skip: iter(rows[skip:]), TASKS["instruction"], collator, buffer=buffer, world_size=world, label=label
    )


def indices(chunks):
    return [[kept.index for kept in chunk.rows] for chunk in chunks]


def test_chunks_repeat_the_corpus_endlessly(tokenizer):
    endless = stream(tokenizer).chunks(Position())
    chunks = list(islice(endless, 6))
    assert indices(chunks) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9], [0, 1, 2, 3]]
    assert [chunk.position for chunk in chunks] == [
        Position(0, 0), Position(0, 4), Position(0, 8), Position(1, 2), Position(1, 6), Position(1, 10)
    ]  # fmt: skip
    for number, chunk in enumerate(chunks):  # the same from each of these positions
        assert list(islice(stream(tokenizer).chunks(chunk.position), 6 - number)) == chunks[number:]


def test_chunks_have_equal_sizes_if_buffer_or_processes_do_not_divide_the_corpus(tokenizer):
    assert indices(islice(stream(tokenizer, n=3, buffer=7).chunks(Position()), 2)) == [
        [0, 1, 2, 0, 1, 2, 0],
        [1, 2, 0, 1, 2, 0, 1],
    ]
    chunks = list(islice(stream(tokenizer, n=10, buffer=4, world=3).chunks(Position()), 3))
    assert indices(chunks) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 1], [2, 3, 4, 5, 6, 7]]
    assert indices(islice(stream(tokenizer, n=1, buffer=1, world=3).chunks(Position()), 1)) == [[0, 0, 0]]


def test_dropped_rows_are_replaced_and_counted(tokenizer):
    kept = [n for n in range(10) if len(row(n)["target"]) + 1 <= 8]
    assert 2 < len(kept) < 8
    reading = stream(tokenizer, buffer=1, world=2, limit=8)
    chunks = indices(islice(reading.chunks(Position()), len(kept)))
    assert all(len(chunk) % 2 == 0 for chunk in chunks)
    flat = list(chain.from_iterable(chunks))
    assert flat == (kept * 3)[: len(flat)]
    told = reading.report()
    assert told["rows"] - told["dropped"] == len(flat)
    assert told["dropped"] == told["overlong_responses"] > 0
    assert (told["overlong_prompts"], told["overlong"], told["streamed"]) == (0, "drop", True)


def test_a_corpus_without_a_usable_row_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"^data=x, holds no rows$"):
        next(stream(tokenizer, n=0, label="data=x, ").chunks(Position()))
    for buffer in (1, 3, 25):
        with pytest.raises(UserError, match=r"^data=x, no row is left of 10, all were over-long and dropped; raise"):
            next(stream(tokenizer, buffer=buffer, limit=1, label="data=x, ").chunks(Position()))


def test_streaming_requires_a_setting_for_overlong_rows(tokenizer):
    with pytest.raises(UserError, match=r"^data\.streaming=true: an over-long row .* data\.overlong=truncate or"):
        RowStream(lambda _: iter(()), TASKS["instruction"], Collator(tokenizer), buffer=1)


# Batches


@pytest.fixture
def files(tmp_path):
    for split, n in (("train", 60), ("validation", 23), ("test", 9)):
        write(tmp_path, n, f"{split}.jsonl")
    return tmp_path


def make(files, tokenizer, seed=1, overlong=Overlong.drop, **values):
    names = {split: str(files / f"{split}.jsonl") for split in SPLITS}
    values = {"batch_tokens": 150, "eval_batch_size": 4, "streaming": True, "buffer": 25} | names | values
    return DataModule(
        DataConfig(name="json", **values), TASKS["instruction"], Collator(tokenizer, overlong=overlong), seed
    )


def first(loader, n):
    return [batch.indices for batch in islice(iter(loader), n)]


@pytest.mark.parametrize(("buffer", "looked_at"), [(25, 25), (1_000, 60)])
def test_statistics_count_each_row_of_the_first_buffer_once(files, tokenizer, buffer, looked_at):
    data = make(files, tokenizer, buffer=buffer)
    data.prepare("train")
    data.compare()
    told = data.report()["train"]
    assert (told["rows"], told["repeated"], told["dropped"]) == (looked_at, 0, 0)
    assert [len(rows) for rows in (data.first_rows("train"), data._examples[FIRST_ROWS])] == [looked_at, looked_at]


def test_batches_contain_the_rows_of_their_indices(files, tokenizer):
    seen = []
    for batch in islice(iter(make(files, tokenizer).train_dataloader()), 30):
        prompts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch.slm_ids_BQ]
        texts = Collator(tokenizer).decode(batch.labels_BT)
        assert [row(i) for i in batch.indices] == [
            {"source": prompt, "target": text} for prompt, text in zip(prompts, texts, strict=True)
        ]
        assert batch.labels_BT.numel() + batch.slm_ids_BQ.numel() <= 150
        seen += batch.indices
    often = Counter(seen)
    assert set(often) == set(range(60))
    assert max(often.values()) - min(often.values()) <= 1


def test_rows_are_shuffled_by_the_seed_within_the_buffer(files, tokenizer):
    whole = first(make(files, tokenizer).train_dataloader(), 20)
    assert whole == first(make(files, tokenizer).train_dataloader(), 20)
    assert whole != first(make(files, tokenizer, seed=2).train_dataloader(), 20)
    assert whole == first(make(files, tokenizer, workers=1).train_dataloader(), 20)
    flat = list(chain.from_iterable(whole))
    assert sorted(flat[:25]) == list(range(25))
    assert flat[:25] != sorted(flat[:25])
    assert sorted(flat[25:50]) == list(range(25, 50))
    assert sorted(flat[50:60]) != list(range(50, 60))  # the third chunk holds rows of the next pass too


def test_each_pass_has_a_different_order(files, tokenizer):
    flat = list(chain.from_iterable(first(make(files, tokenizer, buffer=60).train_dataloader(), 90)))
    passes = [flat[:60], flat[60:120], flat[120:180]]
    assert all(sorted(one) == list(range(60)) for one in passes)
    assert len(set(map(tuple, passes))) == 3


def test_processes_divide_the_batches(files, tokenizer, monkeypatch):
    def of(rank, world, n):
        data = make(files, tokenizer)
        monkeypatch.setattr(data, "_process", lambda: (rank, world))
        return first(data.train_dataloader(), n)

    for world in (2, 3):
        dealt = [of(rank, world, 12) for rank in range(world)]
        together = [batch for step in zip(*dealt, strict=True) for batch in step]
        assert set(Counter(chain.from_iterable(together[: 2 * world])).values()) == {1}  # no row twice within a pass
        often = Counter(chain.from_iterable(together))
        assert set(often) == set(range(60))
        assert max(often.values()) - min(often.values()) <= 2  # the last chunk is incomplete


# Under the Trainer


@pytest.mark.parametrize("accumulate", representatives([1, 2], [2]))
def test_a_run_resumed_at_any_step_has_the_batches_of_an_uninterrupted_run(files, tokenizer, tmp_path, accumulate):
    steps = 18 // accumulate
    saver = ModelCheckpoint(tmp_path / "all", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3, "check_val_every_n_epoch": None}
    options["limit_val_batches"] = 2
    whole = train(make(files, tokenizer), steps, tmp_path, [saver], **options)
    assert len(set(chain.from_iterable(whole.seen))) == 60 < len(list(chain.from_iterable(whole.seen)))
    assert whole.seen == first(make(files, tokenizer).train_dataloader(), len(whole.seen))
    for step in range(1, steps):
        again = train(make(files, tokenizer), steps, tmp_path, resume=tmp_path / "all" / f"step={step}.ckpt", **options)
        assert again.seen == whole.seen[-len(again.seen) :], step
        assert len(again.seen) == (steps - step) * accumulate
        assert torch.equal(again.weight, whole.weight), step
    state = torch.load(tmp_path / "all" / f"step={steps - 1}.ckpt", weights_only=True)["DataModule"]
    assert set(state) == {"batches_done", "chunk_began", "epoch", "row", "processes"}
    assert all(type(value) is int for value in state.values())


def test_resuming_after_an_exception_repeats_the_unfinished_batch(files, tokenizer, tmp_path):
    whole = train(make(files, tokenizer), 15)
    for stop in (1, 5, 11):
        path = tmp_path / f"{stop}.ckpt"
        with pytest.raises(RuntimeError, match="stopped"):
            train(make(files, tokenizer), 15, callbacks=[SaveOnException(path)], module=Recorder(stop))
        assert train(make(files, tokenizer), 15, resume=path).seen == whole.seen[stop:]


@pytest.mark.slow
def test_two_processes_stream_all_rows_and_resume(files, tokenizer, tmp_path):
    options = {"strategy": "ddp_fork", "devices": 2, "limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    options |= {"val_check_interval": 5, "check_val_every_n_epoch": None}
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    module = Recorder(path=tmp_path)
    train(make(files, tokenizer), 10, tmp_path, [saver], module=module, **options)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(rank["seen"]) for rank in ranks] == [10, 10]
    seen = list(chain.from_iterable(chain.from_iterable(rank["seen"] for rank in ranks)))
    assert set(seen) == set(range(60))
    assert max(Counter(seen).values()) - min(Counter(seen).values()) <= 2
    (tmp_path / "again").mkdir()
    again = Recorder(path=tmp_path / "again")
    train(make(files, tokenizer), 10, tmp_path, module=again, resume=tmp_path / "step=4.ckpt", **options)
    for rank in (0, 1):
        told = json.loads((tmp_path / "again" / f"rank{rank}.json").read_text())
        assert told["seen"] == ranks[rank]["seen"][4:]
    with pytest.raises(UserError, match=r"the checkpoint is of 2 processes, this run has 1; .* trainer\.devices"):
        train(make(files, tokenizer), 10, resume=tmp_path / "step=4.ckpt")
    with pytest.raises(UserError, match=r"the checkpoint is of a training with data\.streaming"):
        train(make(files, tokenizer, streaming=False), 10, resume=tmp_path / "step=4.ckpt")


def test_a_checkpoint_of_rows_in_memory_and_overfitting_are_refused(files, tokenizer, tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="two")
    train(make(files, tokenizer, streaming=False), 2, callbacks=[saver])
    with pytest.raises(
        UserError, match=r"the checkpoint is of a training without data\.streaming; to resume, set data"
    ):
        train(make(files, tokenizer), 4, resume=tmp_path / "two.ckpt")
    with pytest.raises(UserError, match=r"trainer\.overfit_batches=2: not with data\.streaming"):
        train(make(files, tokenizer), 4, overfit_batches=2)


# The command line


def test_training_on_a_stream_is_recorded_and_resumed(files, tiny_llm, monkeypatch, capsys):
    monkeypatch.chdir(files)
    (files / "test.jsonl").write_text((files / "train.jsonl").read_text())
    data = ["data=json", *(f"data.{split}={split}.jsonl" for split in SPLITS), "data.streaming=true", "data.buffer=10"]
    own = ["task=instruction", "data.overlong=truncate", "data.train_size=null", "data.batch_tokens=300"]
    arguments = ["train", *tiny_overrides(tiny_llm), *data, *own, "trainer.val_every=2", "trainer.max_steps=4"]
    more = ["model.slm.tokenizer=train:300", "model.tokenizers=offsets", "hydra.run.dir=run"]
    assert main([*arguments, *more]) == 0
    shown = capsys.readouterr()
    assert "train, first rows" in shown.out
    assert "warning: 4 of 4 prompts of the test split" in shown.err
    assert "data.buffer" not in shown.err
    [system] = json.loads((files / "run" / "result.json").read_text("utf-8"))["systems"]
    told = system["notes"]["data"]["train"]
    assert told["streamed"] is True
    assert 10 < told["rows"] <= 60 and told["rows"] % 10 == 0
    assert told["tokens"]["response"]["max"] > 1
    assert main([*arguments, "data.buffer=70", "hydra.run.dir=small"]) == 0
    assert "warning: data.buffer=70 is more than the 60 training rows" in capsys.readouterr().err
    assert main(["train", "run=run", "trainer.max_steps=6"]) == 0
    assert main(["evaluate", "run=run", "split=train", "data.train_size=3", "hydra.run.dir=scored"]) == 0
    capsys.readouterr()
    for wrong, found in {
        "data.overlong=error": "data.streaming=true: an over-long row would end the training",
        "data.buffer=0": "data.buffer=0: must be at least 1",
        "data.labels=mix": "data.streaming=true: rows are read with the targets of the corpus, not with "
        "data.labels=mix; set data.streaming=false",
        "data.train=none.jsonl": "none.jsonl: no such file",
    }.items():
        assert main([*arguments, wrong, "hydra.run.dir=wrong"]) == 2
        assert mistake(capsys).startswith(found)
    builtin = ["train", *tiny_overrides(tiny_llm), "data.streaming=true", "data.overlong=truncate"]
    assert main([*builtin, "hydra.run.dir=wrong"]) == 2
    assert mistake(capsys).startswith("data.streaming=true: data=builtin is made in memory")
    assert not list((files / "wrong").glob("*.yaml"))
