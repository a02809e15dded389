"""Optimisers beside those of torch."""

import copy
from itertools import pairwise

import pytest
import torch
from conftest import Compose
from torch import nn

from vae_lab import NormalizedAdam
from vae_lab.training import runner

RUN = (
    "name=test", "latent.dim=2", "data.num_train=40", "data.num_val=8", "data.num_test=8", "trainer.max_epochs=2",
    "trainer.threads=1", "encoder=mlp", "decoder=mlp", "trainer.precision=32-true", "optimizer=normalized_adam",
)  # fmt: skip


def trained(optimizer: type, factor: float, *, normalized: bool = False) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    takes = optimizer(network.parameters(), lr=0.01)
    for x in torch.randn(10, 5, 3):
        takes.zero_grad()
        (factor * network(x).square().mean()).backward()
        if normalized:
            for weight in network.parameters():
                weight.grad /= weight.grad.norm()
        takes.step()
    return network


def test_it_is_adam_on_gradients_of_length_one() -> None:
    ours, theirs = trained(NormalizedAdam, 1.0), trained(torch.optim.Adam, 1.0, normalized=True)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_does_not_depend_on_the_size_of_the_loss() -> None:
    weights = [[*trained(NormalizedAdam, factor).parameters()] for factor in (0.01, 1.0, 1000.0)]
    for one, other in pairwise(weights):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_weights_without_a_gradient_or_with_a_gradient_of_zero_stay() -> None:
    used, unused, flat = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = NormalizedAdam([used, unused, flat])
    (used.sum() + 0 * flat.sum()).backward()
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert torch.equal(flat, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))


def test_a_closure_computes_the_gradients_that_are_normalised() -> None:
    network = nn.Linear(3, 1)
    other, x = copy.deepcopy(network), torch.randn(5, 3)

    def closure() -> torch.Tensor:
        loss = 1000 * network(x).square().mean()
        loss.backward()
        return loss

    (1000 * other(x).square().mean()).backward()
    NormalizedAdam(other.parameters()).step()
    assert NormalizedAdam(network.parameters()).step(closure) > 0
    assert torch.equal(network.weight, other.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_of_16_bit_training_gives_it_gradients_in_their_own_scale(fused: bool) -> None:
    optimizer = NormalizedAdam([nn.Parameter(torch.ones(2))], fused=fused)
    assert not optimizer._step_supports_amp_scaling


@pytest.mark.parametrize("words", [(), ("trainer.enable_progress_bar=false", "+trainer.gradient_clip_val=1.0")])
def test_a_run_trains_with_it_on_both_paths(run_of: Compose, words: tuple[str, ...]) -> None:
    result = runner.run(run_of(*RUN, *(f"+{word}" if word[0] != "+" else word for word in words)))
    assert result.error is None
