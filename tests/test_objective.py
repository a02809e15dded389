"""The numbers' definitions, by hand and against the published table."""

import pytest
import torch

from vae_lab.model.interfaces import Posterior
from vae_lab.model.vae import Output
from vae_lab.objectives import mse_kl
from vae_lab.report.tables import PUBLISHED
from vae_lab.training.runner import TERMS


def output(reconstruction: torch.Tensor, kl: torch.Tensor) -> Output:
    return Output(reconstruction, Posterior(kl, kl), kl)


def test_terms_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 0.5]).reshape(1, 1, 2, 2)
    reconstruction = torch.tensor([0.5, 1.0, 0.5, 0.0]).reshape(1, 1, 2, 2)
    losses = mse_kl(output(reconstruction, torch.tensor([[1.0, 3.0]])), images, beta=0.1)
    assert tuple(losses) == TERMS
    # (0.25 + 0 + 0 + 0.25) / 4, (1 + 3) / 2, 0.125 + 0.1 · 2
    assert [round(losses[term].item(), 6) for term in TERMS] == [0.325, 0.125, 2.0]


def test_each_image_and_pixel_weighs_alike() -> None:
    torch.manual_seed(0)
    images, reconstruction, kl = torch.rand(6, 3, 4, 5), torch.rand(6, 3, 4, 5), torch.rand(6, 7)
    whole = mse_kl(output(reconstruction, kl), images, beta=0.01)
    each = [mse_kl(output(reconstruction[i : i + 1], kl[i : i + 1]), images[i : i + 1], beta=0.01) for i in range(6)]
    for term in TERMS:
        torch.testing.assert_close(whole[term], torch.stack([one[term] for one in each]).mean())


def test_beta_zero_is_an_autoencoder() -> None:
    losses = mse_kl(output(torch.zeros(1, 1, 2, 2), torch.ones(1, 2)), torch.ones(1, 1, 2, 2), beta=0.0)
    assert losses["total"] == losses["reconstruction"] == 1


@pytest.mark.parametrize("cell", PUBLISHED)
def test_the_published_table_follows_this_convention(cell: str) -> None:
    row = PUBLISHED[cell]
    assert row.total == pytest.approx(row.reconstruction + 0.01 * row.kl, abs=1e-4)
