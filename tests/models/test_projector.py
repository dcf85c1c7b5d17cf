"""The projector against its formula."""

from __future__ import annotations

import pytest
import torch

from llm2slm.models.projector import Projector

B, P, E, D = 2, 5, 6, 4


def reps() -> torch.Tensor:
    return torch.randn(B, P, E, generator=torch.Generator().manual_seed(0)) * 9 + 2


def scaled(x: torch.Tensor) -> torch.Tensor:
    """Each vector over its root mean square."""
    return x / (x * x).mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", [True, False])
def test_the_projector_is_linear_relu_linear(norm: bool) -> None:
    projector = Projector(E, D, hidden=7, norm=norm)
    weights = dict(projector.named_parameters())
    at = 1 if norm else 0
    expected_names = {f"layers.{at}.weight", f"layers.{at}.bias", f"layers.{at + 2}.weight", f"layers.{at + 2}.bias"}
    assert weights.keys() == expected_names | ({"layers.0.weight"} if norm else set())

    x = scaled(reps()) if norm else reps()
    hidden = x @ weights[f"layers.{at}.weight"].T + weights[f"layers.{at}.bias"]
    hidden = torch.where(hidden > 0, hidden, 0.0)
    expected = hidden @ weights[f"layers.{at + 2}.weight"].T + weights[f"layers.{at + 2}.bias"]
    assert hidden.shape == (B, P, 7)
    torch.testing.assert_close(projector(reps()), expected)


def test_norm_makes_the_scale_of_representations_irrelevant() -> None:
    with_norm, without = Projector(E, D), Projector(E, D, norm=False)
    torch.testing.assert_close(with_norm(reps() * 1000), with_norm(reps()))
    assert not torch.allclose(without(reps() * 1000), without(reps()))


def test_hidden_zero_is_one_linear_layer() -> None:
    projector = Projector(E, D, hidden=0, norm=False)
    weight, bias = projector.parameters()
    torch.testing.assert_close(projector(reps()), reps() @ weight.T + bias)


def test_hidden_defaults_to_the_width_of_the_slm() -> None:
    shapes = {name: tuple(p.shape) for name, p in Projector(E, D).named_parameters()}
    assert shapes["layers.1.weight"] == (D, E)
    assert shapes["layers.3.weight"] == (D, D)


def test_gate_starts_closed_and_can_open() -> None:
    projector = Projector(E, D, gate=True)
    z = projector(reps())
    assert torch.equal(z, torch.zeros(B, P, D))
    (z - 1).square().sum().backward()
    assert projector.gate is not None and projector.gate.grad is not None and projector.gate.grad != 0
    with torch.no_grad():
        projector.gate.fill_(2.0)
        torch.testing.assert_close(projector(reps()), 2 * projector.layers(reps()))


def test_representations_of_another_dtype_are_converted() -> None:
    projector = Projector(E, D)
    half = reps().bfloat16()
    assert torch.equal(projector(half), projector(half.float()))


def test_several_layers_are_normalised_and_mixed_by_weights_that_sum_to_one() -> None:
    projector = Projector(E, D, hidden=0, norm=False, layers=3)
    projector.mix.data.copy_(torch.tensor([0.0, 2.0, -1.0]))
    side_by_side = torch.cat([reps(), reps() * 50 + 3, reps().flip(-1)], dim=-1)
    share = torch.tensor([0.0, 2.0, -1.0]).exp()
    share /= share.sum()
    mixed = torch.zeros(B, P, E)
    for weight, layer in zip(share, side_by_side.split(E, dim=-1), strict=True):
        centred = layer - layer.mean(-1, keepdim=True)
        mixed += weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    weight, bias = projector.layers[0].weight, projector.layers[0].bias
    torch.testing.assert_close(projector(side_by_side), mixed @ weight.T + bias, rtol=1e-4, atol=1e-5)
    projector(side_by_side).square().sum().backward()
    assert projector.mix.grad.abs().max() > 0


def test_embeddings_of_the_llm_are_mapped_by_one_matrix() -> None:
    projector = Projector(E, D, embeddings=3)
    assert dict(projector.named_parameters())["tokens.weight"].shape == (D, 3)
    embeds = torch.randn(B, P, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(projector.embed(embeds), embeds @ projector.tokens.weight.T)
    with pytest.raises(ValueError, match="has no map of embeddings"):
        Projector(E, D).embed(embeds)
