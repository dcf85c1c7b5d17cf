"""Conditioning position by position: every vector is computed in plain Python, without tensor operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm2slm.models.conditioning import get
from llm2slm.models.conditioning.add import add
from llm2slm.models.conditioning.prepend import pool
from llm2slm.models.conditioning.replace import replace
from llm2slm.models.sequences import align, concatenate, positions

D = 3
Q_LENGTHS, P_LENGTHS = [4, 2, 1], [3, 5, 1]


def padded_mask(lengths: list[int], left: bool) -> Tensor:
    width = max(lengths)
    rows = [[0] * (width - n) + [1] * n if left else [1] * n + [0] * (width - n) for n in lengths]
    return torch.tensor(rows)


def numbered(start: float, rows: int, length: int) -> Tensor:
    """Vectors that all differ, so that each identifies its origin."""
    return start + torch.arange(rows * length * D, dtype=torch.float32).view(rows, length, D)


@pytest.fixture(params=["left", "right"])
def left(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "left")


def test_add_and_replace_by_hand(left: bool) -> None:
    mask = padded_mask(Q_LENGTHS, left)
    embeds, z = numbered(1, 3, 4), numbered(1000, 3, 4)
    added, replaced = add(embeds, z, mask), replace(embeds, z, mask)
    for b in range(3):
        for q in range(4):
            e, other = embeds[b, q].tolist(), z[b, q].tolist()
            real = mask[b, q] == 1
            assert added[b, q].tolist() == ([x + y for x, y in zip(e, other, strict=True)] if real else e)
            assert replaced[b, q].tolist() == (other if real else e)


def test_prepend_leaves_no_gap(left: bool) -> None:
    mask_BQ, mask_BP = padded_mask(Q_LENGTHS, left), padded_mask(P_LENGTHS, left)
    embeds, z = numbered(1, 3, 4), numbered(1000, 3, 5)
    states, mask = concatenate(z, mask_BP, embeds, mask_BQ, pad_left=left)
    for b in range(3):
        expected = [v for v, m in zip(z[b].tolist(), mask_BP[b].tolist(), strict=True) if m]
        expected += [v for v, m in zip(embeds[b].tolist(), mask_BQ[b].tolist(), strict=True) if m]
        n = Q_LENGTHS[b] + P_LENGTHS[b]
        assert mask[b].tolist() == ([0] * (9 - n) + [1] * n if left else [1] * n + [0] * (9 - n))
        assert (states[b, 9 - n :] if left else states[b, :n]).tolist() == expected


def test_align_is_a_weighted_mean_of_z() -> None:
    z = numbered(10, 1, 3)
    weights = torch.tensor([[[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]])
    first, second = z[0, 0].tolist(), z[0, 1].tolist()
    expected = [first, [0.25 * a + 0.75 * b for a, b in zip(first, second, strict=True)], [0.0] * D]
    assert align(z, weights)[0].tolist() == expected
    assert align(z, None) is z


@pytest.mark.parametrize("mode", [add, replace], ids=["add", "replace"])
@pytest.mark.parametrize("length", [1, 5])  # 1 would broadcast
def test_sequences_of_different_lengths_are_refused(mode, length) -> None:
    with pytest.raises(ValueError, match=rf"\(3, 4, 3\).*\(3, {length}, 3\)"):
        mode(numbered(0, 3, 4), numbered(0, 3, length), torch.ones(3, 4))


def test_positions_count_real_tokens_only() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 1]])
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 2]]


def test_the_card_states_how_the_llm_reaches_the_slm() -> None:
    unmapped, mapped = ({"kv": {"blocks": [1, 15, 30], "mapped": mapped}} for mapped in (False, True))
    assert get("kv").in_words(unmapped) == (
        "the keys and values of its blocks 1, 15, 30 are, without a projector, the cache of the prompt of"
    )
    assert get("kv").in_words(mapped) == (
        "linear maps add the keys and values of its blocks 1, 15, 30 to those of the prompt in"
    )
    assert get("memory").in_words({"kv": None}) is None


@pytest.mark.parametrize("size", [1, 2, 3, 99, 0.4, 0.01, 0.999])
def test_pool_is_the_mean_of_neighbours_in_groups_of_similar_size(left: bool, size: float) -> None:
    mask, z = padded_mask(P_LENGTHS, left), numbered(1, 3, 5)
    pooled, pooled_mask = pool(z, mask, size)
    for b, length in enumerate(P_LENGTHS):
        tokens = [v for v, m in zip(z[b].tolist(), mask[b].tolist(), strict=True) if m]
        n = min(length, int(size)) if size >= 1 else math.ceil(length * size)
        groups = [[t for r, t in enumerate(tokens) if r * n // length == g] for g in range(n)]
        assert sum(map(len, groups)) == length
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
        assert pooled_mask[b].tolist() == [1] * n + [0] * (pooled.shape[1] - n)
        means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]
        torch.testing.assert_close(pooled[b, :n], torch.tensor(means))
        assert pooled[b, n:].abs().sum() == 0
