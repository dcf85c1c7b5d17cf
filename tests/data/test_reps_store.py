"""The store of representations: reading, refusals, and its state after an interruption at any moment.

Representations are a short formula of the token ids here, which serves as an independent oracle;
`tests/test_offline.py` compares with a real LLM.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from llm2slm.data.reps import writer as reps_writer
from llm2slm.data.reps.files import INT8_ERROR, SET_BY
from llm2slm.data.reps.store import RepsStore
from llm2slm.data.reps.writer import FILE_BYTES, StoreWriter
from llm2slm.types import Reps, StoreDtype, UserError

IDENTITY: dict[str, Any] = {
    "name": "some/llm", "revision": "abc", "fingerprint": "0123456789ab", "dtype": "float32", "quantization": {},
    "layers": [1, 3], "tokenizer": "ba9876543210", "frame": {"before": "read: ", "after": "", "special_tokens": True},
}  # fmt: skip
READER = {"layers": [1, 3], "width": 8, "embedding_width": 6}
LAYERS, E = 2, 16
SHARD = 2000
NUMBERS = [i // 2 if i % 6 == 0 else i for i in range(60)]  # every sixth row is a duplicate
ROWS = [[3 + (7 * i + 11 * t) % 90 for t in range(1 + (5 * i) % 13)] for i in NUMBERS]
DIFFERENT = [list(row) for row in dict.fromkeys(map(tuple, ROWS))]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need no durability; on a busy disk, waiting would take most of their time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def values(row: Sequence[int]) -> Tensor:
    """The formula: [tokens, E]. Its second layer is a thousand times larger than its first, and each token depends on
    the tokens before it."""
    seen = torch.tensor(row, dtype=torch.float64).cumsum(0)
    waves = torch.sin(seen.unsqueeze(1) * torch.arange(1, E + 1) / 7) * (1 + seen.unsqueeze(1) % 5)
    return (waves * torch.tensor([1.0] * 8 + [1000.0] * 8, dtype=torch.float64)).float()


def padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask; a padding token that also occurs in the text."""
    width = max(map(len, rows)) + 1
    ids, mask = torch.full((len(rows), width), 5), torch.zeros(len(rows), width, dtype=torch.int64)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask


def represented(rows: Sequence[Sequence[int]], left: bool = False) -> Reps:
    """Representations of a batch as from the LLM; those of padding must not be stored."""
    _, mask = padded(rows, left)
    reps = torch.full((*mask.shape, E), 77.0)
    for b, row in enumerate(rows):
        reps[b][mask[b].bool()] = values(row)
    return Reps(reps, mask)


def writer(
    folder: Path, dtype: StoreDtype = StoreDtype.float32, shard_bytes: int = SHARD, **identity: Any
) -> StoreWriter:
    return StoreWriter(folder, IDENTITY | identity, READER, dtype, shard_bytes)


def fill(folder: Path, dtype: StoreDtype = StoreDtype.float32, rows: Sequence[Sequence[int]] = ROWS) -> RepsStore:
    """A store of the given rows, written in batches of four, padded left and right alternately."""
    with writer(folder, dtype) as store:
        for start in range(0, len(rows), 4):
            store.append(rows[start : start + 4], represented(rows[start : start + 4], left=start % 8 == 0))
        store.finish()
    return RepsStore(folder, IDENTITY)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def expected(rows: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    reps = torch.zeros(*mask.shape, E)
    for b, row in enumerate(rows):
        reps[b][mask[b] == 1] = values(row)
    return reps


# Reading


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("dtype", list(StoreDtype))
def test_a_batch_is_read_as_written(tmp_path: Path, dtype: StoreDtype, left: bool) -> None:
    store = fill(tmp_path, dtype)
    assert len(store.index.entries) > 5
    for start in range(0, len(ROWS), 7):
        rows = [*ROWS[start : start + 7], ROWS[start]]  # one of them twice
        ids, mask = padded(rows, left)
        found, right = store.reps(ids, mask), expected(rows, mask)
        assert found.mask_BP is mask
        assert found.reps_BPE.dtype == torch.float32
        assert (found.reps_BPE[mask == 0] == 0).all()
        if dtype is StoreDtype.int8:
            largest = right.unflatten(-1, (LAYERS, -1)).abs().amax(-1, keepdim=True)
            assert ((found.reps_BPE - right).unflatten(-1, (LAYERS, -1)).abs() <= largest * INT8_ERROR).all()
        else:
            assert torch.equal(found.reps_BPE, right.to(getattr(torch, dtype.value)).float())


def test_the_largest_error_is_within_a_tenth_of_its_bound(tmp_path: Path) -> None:
    """Otherwise the bound would be uninformative; checked in either layer."""
    text = [[3 + i, 4 + i, 9] for i in range(80)]
    right = torch.cat([values(row) for row in text])
    whole = {dtype: fill(tmp_path / dtype, dtype, text).reps_of(text) for dtype in StoreDtype}
    rounded = {dtype: reps.reps_BPE[reps.mask_BP.bool()] for dtype, reps in whole.items()}
    largest = right.unflatten(1, (LAYERS, -1)).abs().amax(-1, keepdim=True)
    parts = (rounded[StoreDtype.int8] - right).unflatten(1, (LAYERS, -1)).abs() / largest
    assert ((parts.amax((0, 2)) > 0.9 * INT8_ERROR) & (parts.amax((0, 2)) <= INT8_ERROR)).all()
    relative = ((rounded[StoreDtype.bfloat16] - right) / right).abs()
    assert 0.9 / 256 < float(relative.max()) <= 1 / 256
    assert torch.equal(rounded[StoreDtype.float32], right)


def test_int8_of_zeros_and_of_tiny_values(tmp_path: Path) -> None:
    reps = torch.zeros(1, 3, E)
    reps[0, 1, 4], reps[0, 2, 12] = 1e-38, -1e-20
    with writer(tmp_path, StoreDtype.int8) as store:
        store.append([[5, 6, 7]], Reps(reps, torch.ones(1, 3)))
        store.finish()
    found = RepsStore(tmp_path).reps_of([[5, 6, 7]]).reps_BPE
    assert (found[0, :2] == 0).all()
    assert found[0, 2, 12] == pytest.approx(-1e-20, rel=INT8_ERROR)


def test_another_dtype_is_returned_on_request(tmp_path: Path) -> None:
    store = fill(tmp_path)
    found = store.reps(*padded(ROWS[:3], False), dtype=torch.bfloat16).reps_BPE
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected(ROWS[:3], padded(ROWS[:3], False)[1]).bfloat16())


def test_shapes_are_known_without_the_llm(tmp_path: Path) -> None:
    store = fill(tmp_path)
    assert (store.width, store.layers, store.embedding_width) == (8, [1, 3], 6)
    assert (store.identity, store.encoder_facts) == (IDENTITY, READER)
    assert (store.dtype, store.finished) == (StoreDtype.float32, True)


def test_a_prompt_is_stored_once(tmp_path: Path) -> None:
    assert len(DIFFERENT) == len(set(NUMBERS)) < len(ROWS)
    with writer(tmp_path) as store:
        new = [store.append(ROWS[i : i + 4], represented(ROWS[i : i + 4])) for i in range(0, len(ROWS), 4)]
        assert sum(new) == len(store) == len(DIFFERENT)
        assert store.append(ROWS[:4], represented(ROWS[:4])) == 0
        store.finish()
    read = RepsStore(tmp_path)
    assert (len(read), read.tokens) == (len(DIFFERENT), sum(map(len, DIFFERENT)))
    kept = [load_file(path)["starts"] for path in sorted(tmp_path.glob("shard-*.safetensors"))]
    assert sum(len(starts) - 1 for starts in kept) == len(DIFFERENT)
    assert sum(int(starts[-1]) for starts in kept) == read.tokens


@pytest.mark.parametrize("dtype", list(StoreDtype))
def test_files_have_the_expected_bytes_per_token(tmp_path: Path, dtype: StoreDtype) -> None:
    """4 E, 2 E, E + 4 layers, and 24 bytes per prompt. No file exceeds the limit, none is needlessly small."""
    store = fill(tmp_path, dtype)
    each = {"float32": 4 * E, "bfloat16": 2 * E, "int8": E + 4 * LAYERS}[dtype]
    paths = sorted(tmp_path.glob("shard-*.safetensors"))
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in paths]
    assert sum(sizes) == store.tokens * each + len(store) * 24 + 8 * len(sizes)  # an end offset for each file
    assert max(sizes) <= SHARD + 8
    assert min(sizes[:-1]) > SHARD - 13 * each - 24


def test_missing_prompts_are_reported(tmp_path: Path) -> None:
    store = fill(tmp_path)
    known = max(DIFFERENT, key=len)
    strangers = [known[:-1], known[::-1], [*known, 5], [*known[:-1], known[-1] + 1]]
    assert store.missing([known, *strangers, known]) == [1, 2, 3, 4]
    for stranger in strangers:
        ids, mask = padded([known, stranger], left=True)
        with pytest.raises(
            UserError, match=rf"row 1 of a batch, {len(stranger)} tokens of the LLM, is not in this store"
        ):
            store.reps(ids, mask)
        with pytest.raises(UserError, match=r"the prompt of row 4711 "):
            store.reps(ids, mask, indices=(12, 4711))
    empty = fill(tmp_path / "empty", rows=[])
    assert empty.missing([known]) == [0]
    with pytest.raises(UserError, match=r"row 0 .* is incomplete"):
        empty.reps_of([known])


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """`save_file` of safetensors would give them to the owner only."""
    store = fill(tmp_path)
    modes = {(tmp_path / name).stat().st_mode for name in ("store.json", store.index.entries[0].file)}
    assert len(modes) == 1


def test_the_embedding_matrix_is_stored_once(tmp_path: Path) -> None:
    matrix = torch.randn(99, 6).bfloat16()
    ids = torch.tensor([[4, 98, 0], [1, 1, 7]])
    with pytest.raises(UserError, match="has no embedding matrix"):
        fill(tmp_path / "without").embed(ids)
    for _ in range(2):
        with writer(tmp_path / "with") as store:
            store.add_embeddings(matrix)
            store.append(ROWS[:3], represented(ROWS[:3]))
            store.finish()
        found = RepsStore(tmp_path / "with")
        assert found.has_embeddings
        assert torch.equal(found.embed(ids), matrix[ids])
        assert len(found.index.entries) == 2
        assert torch.equal(found.reps_of(ROWS[:3]).reps_BPE[0, : len(ROWS[0])], values(ROWS[0]))


# Identity


CHANGES: dict[str, Any] = {
    "name": "other/llm", "revision": None, "fingerprint": "ffff", "dtype": "bfloat16",
    "quantization": {"quant_method": "quanto"}, "layers": [1], "tokenizer": "0", "frame": {"before": "read:"},
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("opened", [RepsStore, lambda folder, identity: StoreWriter(folder, identity, READER)])
def test_another_identity_is_refused_with_its_key(tmp_path: Path, key: str, opened: Any) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError) as refused:
        opened(tmp_path, IDENTITY | {key: CHANGES[key]})
    said = str(refused.value)
    assert "\n" not in said
    if not isinstance(CHANGES[key], dict):
        assert f"{SET_BY.get(key, key)} is {IDENTITY[key]!r} in the store, {CHANGES[key]!r} is required" in said
    elif key == "frame":
        assert "frame.before is 'read: ' in the store, 'read:' is required" in said
    else:
        assert "model.llm.quantization.quant_method is None in the store, 'quanto' is required" in said
    assert [other for other in CHANGES if other != key and f"{SET_BY.get(other, other)} is" in said] == []
    assert contents(tmp_path) == before


def test_every_difference_is_reported_at_once(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError) as refused:
        RepsStore(tmp_path, CHANGES)
    assert [key for key in CHANGES if SET_BY.get(key, key) not in str(refused.value)] == []


def test_keys_that_an_identity_omits_are_not_compared(tmp_path: Path) -> None:
    fill(tmp_path)
    known = {key: value for key, value in IDENTITY.items() if key != "fingerprint"}
    assert RepsStore(tmp_path, known).identity["fingerprint"] == "0123456789ab"
    with pytest.raises(UserError, match="heads is None in the store, 4 is required"):
        RepsStore(tmp_path, known | {"heads": 4})
    with pytest.raises(UserError, match=r"fingerprint is '0123456789ab' in the store, None is required"):
        StoreWriter(tmp_path, known, READER, shard_bytes=SHARD)


def test_a_store_is_resumed_only_with_its_settings(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match="kept_as is 'float32' in the store, 'int8' is required"):
        writer(tmp_path, StoreDtype.int8)
    with pytest.raises(UserError, match="shard_bytes is 2000 in the store, 2001 is required"):
        writer(tmp_path, shard_bytes=2001)
    with pytest.raises(UserError, match=r"reader\.width is 8 in the store, 9 is required"):
        StoreWriter(tmp_path, IDENTITY, READER | {"width": 9}, shard_bytes=SHARD)


def test_folders_that_are_not_a_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no store of representations \(no store\.json\)"):
        RepsStore(tmp_path / "nowhere")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has content other than a store \(thesis\.txt\)"):
        writer(tmp_path)
    assert contents(tmp_path).keys() == {"thesis.txt"}
    with pytest.raises(UserError, match=r"thesis\.txt: cannot be written to \(.*File exists"):
        writer(tmp_path / "thesis.txt")
    for name in ("index.jsonl", "store.json"):
        fill(tmp_path / name)
        before = contents(tmp_path / name)
        (tmp_path / name / name).unlink()
        said = "has content other than a store" if name == "store.json" else r"has no entry of shard-0\d+\.safet.* lost"
        with pytest.raises(UserError, match=said):
            writer(tmp_path / name)
        assert contents(tmp_path / name).items() >= {key: before[key] for key in before if key != name}.items()
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "store.json" / "index.jsonl", tmp_path / "bare")
    with pytest.raises(UserError, match=r"has an index\.jsonl but no store\.json"):
        writer(tmp_path / "bare")
    fill(tmp_path / "store")
    for text, said in [("{", "cannot be read"), ('{"a": 1}', "cannot be read"), ('{"format": 9}', "has format 9")]:
        (tmp_path / "store" / "store.json").write_text(text)
        with pytest.raises(UserError, match=said):
            RepsStore(tmp_path / "store")


def test_only_one_writer_at_a_time_is_allowed(tmp_path: Path) -> None:
    first = writer(tmp_path)
    with pytest.raises(UserError, match="another process is writing it"):
        writer(tmp_path)
    first.close()
    writer(tmp_path).close()


# Damage


@pytest.mark.parametrize("where", [3, 40, 0.1, 0.5, 0.99])
def test_a_changed_byte_is_found_by_verify(tmp_path: Path, where: float, capsys: pytest.CaptureFixture[str]) -> None:
    with writer(tmp_path) as store:
        store.add_embeddings(torch.randn(50, 6))
    store = fill(tmp_path)
    store.verify()
    assert "verifying" in capsys.readouterr().err
    names = ["embeddings.safetensors", "shard-00002.safetensors"]
    for name in names:
        content = bytearray((tmp_path / name).read_bytes())
        content[where if where > 1 else int(where * len(content))] ^= 0x10
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{', '.join(names)} are not as written"):
        RepsStore(tmp_path).verify(progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", [-1, 1, -500, None])
def test_a_file_of_another_size_is_found_when_opened(tmp_path: Path, change: int | None) -> None:
    opened = fill(tmp_path)
    path = tmp_path / "shard-00003.safetensors"
    content = path.read_bytes()
    size = len(content)
    if change is None:
        path.unlink()
        said = "is missing"
    else:
        path.write_bytes((content + b"x" * 9)[: size + change])
        said = f"has {size + change} bytes, {size} were written"
    for use in (lambda: RepsStore(tmp_path), lambda: writer(tmp_path), opened.verify):
        with pytest.raises(UserError, match=f"shard-00003.safetensors: {said}"):
            use()


def test_a_damaged_line_of_the_index_is_reported(tmp_path: Path) -> None:
    fill(tmp_path)
    lines = (tmp_path / "index.jsonl").read_text().splitlines(keepends=True)
    for bad in ("{}\n", "shard\n", lines[1][:30] + "\n", "[]\n", "3\n"):
        (tmp_path / "index.jsonl").write_text("".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(UserError, match=r"index\.jsonl, line 2: is damaged"):
            RepsStore(tmp_path)


def test_non_finite_representations_are_refused(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        reps = represented(ROWS[:2])
        reps.reps_BPE[1, 0, 3] = bad
        with pytest.raises(UserError, match="not finite"), writer(tmp_path) as store:
            store.append(ROWS[:2], reps)
    reps = represented(ROWS[:2])
    reps.reps_BPE[reps.mask_BP == 0] = float("nan")  # padding does not matter
    with writer(tmp_path) as store:
        assert store.append(ROWS[:2], reps) == 2


def test_representations_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = writer(tmp_path)
    with pytest.raises(ValueError, match="2 tokens, but representations of shape"):
        store.append([[5, 6]], Reps(torch.ones(1, 3, E), torch.ones(1, 3)))
    with pytest.raises(ValueError, match="representations of shape"):
        store.append([[5, 6]], Reps(torch.ones(1, 2, E + 1), torch.ones(1, 2)))


# Disk space


@pytest.mark.parametrize("dtype", list(StoreDtype))
@pytest.mark.parametrize("shard_bytes", [500, SHARD, 10**6])
def test_the_size_estimate_is_sufficient_and_tight(tmp_path: Path, dtype: StoreDtype, shard_bytes: int) -> None:
    with writer(tmp_path, dtype, shard_bytes) as store:
        store.append(ROWS, represented(ROWS))
        store.finish()
        estimate = store.bytes_of(len(DIFFERENT), sum(map(len, DIFFERENT)))
    files = list(tmp_path.glob("shard-*"))
    written = sum(path.stat().st_size for path in files) + (tmp_path / "index.jsonl").stat().st_size
    assert written <= estimate <= written + (2 * len(files) + 2) * FILE_BYTES


def test_too_little_disk_space_is_reported_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = writer(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(reps_writer.shutil, "disk_usage", lambda path: usage._replace(free=3_500_000_000))
    store.check_free_space(3_500_000_000)
    with pytest.raises(UserError, match=r"12\.30 GB are to be written \(as float32\), 3\.50 GB are free on this disk"):
        store.check_free_space(12_300_000_000)
    monkeypatch.setattr(reps_writer.shutil, "disk_usage", lambda path: usage._replace(free=1234))
    with pytest.raises(UserError, match="1,234 bytes are free"):
        store.add_embeddings(torch.zeros(100, 6))
    assert not (tmp_path / "embeddings.safetensors").exists()


def test_a_disk_full_at_a_line_of_the_index_is_reported_and_the_store_resumed(tmp_path: Path) -> None:
    """The shard exists without its line (which is not written on closing either): it is written again."""
    said = pytest.raises(
        UserError, match=r"cannot be written \(.*No space left on device.*\); free disk space, and continue"
    )
    with said, writer(tmp_path / "store") as store:
        store.append(DIFFERENT[:4], represented(DIFFERENT[:4]))
        store._log.close()
        store._log = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115  closed by the StoreWriter
        store.finish()
    assert (tmp_path / "store" / "shard-00000.safetensors").is_file()
    assert len(RepsStore(tmp_path / "store")) == 0
    fill(tmp_path / "store", rows=DIFFERENT)
    fill(tmp_path / "whole", rows=DIFFERENT)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_disk_full_within_a_line_of_the_index_is_reported_and_the_store_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw write returns a lower count and raises nothing."""
    with pytest.raises(UserError, match="No space left on device"), writer(tmp_path / "store") as store:
        store.append(DIFFERENT[:4], represented(DIFFERENT[:4]))
        log = store._log

        class Half:
            name = log.name
            fileno, close, tell = log.fileno, log.close, log.tell

            @staticmethod
            def write(content: bytes) -> int:
                return log.write(content[: len(content) // 2])

        store._log = Half()
        store.finish()
    assert len(RepsStore(tmp_path / "store")) == 0
    fill(tmp_path / "store", rows=DIFFERENT)
    fill(tmp_path / "whole", rows=DIFFERENT)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_disk_full_at_the_record_is_reported_and_the_store_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(
            UserError, match=r"store: cannot be written to \(.*No space left.*\); free disk space, and continue"
        ):
            writer(tmp_path / "store")
    with writer(tmp_path / "store") as store:  # the lock was released
        assert len(store) == 0


def test_a_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked against other writers \(.*No locks available"):
        writer(tmp_path / "store")


def test_a_disk_full_at_a_shard_is_reported_and_the_store_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"shard-00000\.safetensors: cannot be written \(.*No space left"):
            fill(tmp_path / "a")
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# Interrupted at any moment


class Died(BaseException):
    """Simulates the end of the process."""


class Interrupter:
    """Counts the steps in which a writer changes the disk, and raises Died before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.last = 0, -1
        for owner, name in [(Path, "replace"), (Path, "unlink"), (Path, "write_text"), (os, "fsync")]:
            monkeypatch.setattr(owner, name, self.step(getattr(owner, name)))
        whole = Path.write_bytes
        half = self.step(lambda path, content: whole(path, content[: len(content) // 2]))
        monkeypatch.setattr(Path, "write_bytes", lambda *to: (half(*to), self.step(whole)(*to)))

    def step(self, act: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            for moment in ("before", "after"):
                if moment == "after":
                    done = act(*args, **kwargs)
                if self.steps == self.last:
                    raise Died
                self.steps += 1
            return done

        return stepped


def job(folder: Path) -> None:
    """Two fillings and an embedding matrix, as by a restarted process: existing parts are skipped."""
    with writer(folder, shard_bytes=2 * SHARD) as store:
        store.add_embeddings(torch.arange(60.0).view(10, 6))
    for rows in (DIFFERENT[:17], DIFFERENT[10:40]):
        with writer(folder, shard_bytes=2 * SHARD) as store:
            todo = store.prompts_to_fill(rows)
            for start in range(0, len(todo), 3):
                batch = todo[start : start + 3]
                if not all(map(store.holds, batch)):
                    store.append(batch, represented(batch))
            if todo:
                store.finish()


def test_a_writer_interrupted_at_every_step_resumes_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write, sync, renaming and removal: the files equal those of an undisturbed writer."""
    with monkeypatch.context() as patched:
        interrupter = Interrupter(patched)
        job(tmp_path / "whole")
        steps = interrupter.steps
    whole = contents(tmp_path / "whole")
    assert steps > 60
    assert len(whole) > 6
    held = []
    for last in range(steps):
        folder = tmp_path / str(last)
        with monkeypatch.context() as patched:
            interrupter = Interrupter(patched)
            interrupter.last = last
            with pytest.raises(Died):
                job(folder)
        if (folder / "store.json").is_file():
            store = RepsStore(folder)  # readable at any moment
            store.verify(progress=False)
            held.append(len(store))
        job(folder)
        assert contents(folder) == whole, last
        shutil.rmtree(folder)
    assert held == sorted(held)
    assert len(set(held)) >= 6


def test_a_writer_interrupted_within_a_line_of_the_index_resumes_to_the_same_files(tmp_path: Path) -> None:
    """The index is truncated at many positions: the file of a partial line is written again, earlier lines are kept."""
    job(tmp_path / "whole")
    whole, index = contents(tmp_path / "whole"), (tmp_path / "whole" / "index.jsonl").read_bytes()
    files = [json.loads(line).get("file") for line in index.splitlines()]
    seen = set()
    for end in range(0, len(index), 23):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "index.jsonl").write_bytes(index[:end])
        entered = index[:end].count(b"\n")
        for file in filter(None, files[entered + 1 :]):  # at most one was written without its line
            (folder / file).unlink()
        lines = [json.loads(line) for line in index[:end].splitlines(True) if line.endswith(b"\n")]
        store = RepsStore(folder)
        assert len(store) == sum(line.get("prompts", 0) for line in lines)
        seen.add(len(store))
        job(folder)
        assert contents(folder) == whole, end
        shutil.rmtree(folder)
    assert len(seen) >= 6


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads file descriptors in /proc")
def test_a_file_is_synced_before_its_renaming_and_its_renaming_before_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure then leaves the same states as a kill."""
    seen: list[tuple[str, int]] = []

    def synced(handle: int) -> None:
        lines = (tmp_path / "index.jsonl").read_bytes().count(b"\n") if (tmp_path / "index.jsonl").exists() else 0
        seen.append((Path(f"/proc/self/fd/{handle}").readlink().name, lines))

    monkeypatch.setattr(os, "fsync", synced)
    fill(tmp_path, rows=ROWS[:3])
    shard = "shard-00000.safetensors"
    assert seen == [
        ("store.json.part", 0), (tmp_path.name, 0),
        (f"{shard}.part", 0), (tmp_path.name, 0), ("index.jsonl", 1), ("index.jsonl", 2),
    ]  # fmt: skip


def test_an_unfinished_store_has_no_partial_shard(tmp_path: Path) -> None:
    with writer(tmp_path) as store:
        store.append(ROWS[:4], represented(ROWS[:4]))
    assert contents(tmp_path).keys() == {"store.json", "index.jsonl"}
    assert len(RepsStore(tmp_path)) == 0
    assert not RepsStore(tmp_path).finished


def test_partial_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """Even by a writer with nothing to write; other files are kept."""
    store = fill(tmp_path)
    before = contents(tmp_path)
    number = len(store.index.entries)
    for name in ("store.json.part", f"shard-{number:05d}.safetensors", "shard-00001.safetensors.part",
                 "embeddings.safetensors", "embeddings.safetensors.part"):  # fmt: skip
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"mine")
    assert len(RepsStore(tmp_path)) == len(store)
    writer(tmp_path).close()
    assert contents(tmp_path).keys() == before.keys() | {"notes.part"}
    assert contents(tmp_path).items() >= before.items()


def test_a_second_filling_adds_new_prompts_only(tmp_path: Path) -> None:
    fill(tmp_path, rows=DIFFERENT[:20])
    before = contents(tmp_path)
    with writer(tmp_path) as store:
        assert store.prompts_to_fill([*DIFFERENT[15:25], DIFFERENT[24]]) == DIFFERENT[20:25]
    assert contents(tmp_path) == before  # opened and closed without changes
    with pytest.raises(Died), writer(tmp_path) as store:
        store.append(DIFFERENT[20:50], represented(DIFFERENT[20:50]))
        assert len(RepsStore(tmp_path)) > 20
        raise Died
    assert not RepsStore(tmp_path).finished
    with writer(tmp_path) as store:  # shards of an unfinished filling do not change the plan
        assert store.prompts_to_fill(DIFFERENT[15:50]) == DIFFERENT[20:50]
        assert store.holds(DIFFERENT[20])


# Several readers


def test_several_processes_read_at_once(tmp_path: Path) -> None:
    store = fill(tmp_path)
    store.reps_of(ROWS[:2])  # mapped already in the process that is forked
    loader = DataLoader(ROWS, batch_size=5, num_workers=2, collate_fn=store.reps_of, multiprocessing_context="fork")
    read = list(loader)
    assert len(read) == len(ROWS) // 5
    for number, reps in enumerate(read):
        assert torch.equal(reps.reps_BPE, expected(ROWS[5 * number : 5 * number + 5], reps.mask_BP))


def test_threads_read_at_once(tmp_path: Path) -> None:
    store = fill(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: store.reps_of([ROWS[i % len(ROWS)]]).reps_BPE[0], range(400)))
    assert all(torch.equal(reps, values(ROWS[i % len(ROWS)])) for i, reps in enumerate(read))


def test_a_spawned_process_opens_the_store_again(tmp_path: Path) -> None:
    """The pickled store contains its path, not its content."""
    store = fill(tmp_path)
    store.reps_of(ROWS)
    handed = pickle.dumps(store)
    assert len(handed) < 6000 < store.nbytes
    assert torch.equal(pickle.loads(handed).reps_of(ROWS).reps_BPE, store.reps_of(ROWS).reps_BPE)


MEASURED = """
import sys
import torch
from llm2slm.data.reps.store import RepsStore
from llm2slm.evaluation.benchmark.peak_memory import peak_resident_mb
ROWS = [[i, i + 1, i + 2] for i in (0, 4000)]
RepsStore(sys.argv[2]).reps_of(ROWS)  # so that code which is loaded on its first use does not count
peaks = [peak_resident_mb()]
store = RepsStore(sys.argv[1])
reps = store.reps_of(ROWS)
assert reps.reps_BPE[1, 2, 5] == 4002.25, reps.reps_BPE[1, 2]
peaks.append(peak_resident_mb())
store._tensors("shard-00000.safetensors")["values"].clone()
peaks.append(peak_resident_mb())
print(peaks[1] - peaks[0], peaks[2] - peaks[1])
"""


@pytest.mark.slow
def test_reading_a_batch_does_not_load_a_shard(tmp_path: Path) -> None:
    """Peak memory of a new process: a batch of 25 kB out of 98 MB, compared with all of it. (Linux maps cached pages in
    blocks of up to 2 MB.)"""
    reader = {"layers": [3], "width": 1024, "embedding_width": 6}
    for name, step in (("large", 1), ("small", 4000)):
        rows = torch.arange(0, 8000, step).unsqueeze(1) + torch.arange(3)
        with StoreWriter(tmp_path / name, IDENTITY, reader, shard_bytes=10**9) as store:
            for part in rows.split(1000):
                reps = (part + 0.25).unsqueeze(-1).expand(-1, -1, 1024)
                store.append(part.tolist(), Reps(reps, torch.ones_like(part)))
            store.finish()
    assert RepsStore(tmp_path / "large").nbytes > 98e6
    folders = [str(tmp_path / name) for name in ("large", "small")]
    root = str(Path(reps_writer.__file__).resolve().parents[3])
    command = [sys.executable, "-c", MEASURED, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    batch, whole = map(float, done.stdout.split())
    assert batch < 12
    assert whole > 150  # pages of the file and the copy: the measurement is sensitive enough
