"""A refactor keeps twenty seeded steps as they were."""

import pytest
import torch
from conftest import Compose

from vae_lab import config, vae
from vae_lab.module import LitVAE

# Made by this file's `losses`, in 64 bits, so that the processor's way of summing does not show.
GOLDEN = {
    "vanilla-vanilla": [
        0.091760386989,
        0.091339469601,
        0.090509898912,
        0.088562146548,
        0.087670033329,
        0.086446649017,
        0.087024182319,
        0.085181276443,
        0.086129734929,
        0.08497934932,
        0.084583904892,
        0.083263343514,
        0.08205899058,
        0.083211734964,
        0.082793109106,
        0.083387851535,
        0.082510541054,
        0.081866299885,
        0.08069926053,
        0.081289540718,
    ],
    "encdec-encdec": [
        0.093130004173,
        0.09199683762,
        0.090834596371,
        0.088684904421,
        0.08713455076,
        0.086637315031,
        0.086847432857,
        0.086159783418,
        0.086326557669,
        0.083489183397,
        0.081495708786,
        0.082965634902,
        0.081516305074,
        0.081618373535,
        0.081714885078,
        0.079259486414,
        0.080501322977,
        0.078930635707,
        0.082917853071,
        0.078857968165,
    ],
}


def losses(run_of: Compose, cell: str) -> list[float]:
    encoder, decoder = cell.split("-")
    settings = run_of(f"encoder={encoder}", f"decoder={decoder}", "latent.dim=8", "trainer.max_epochs=1").config
    torch.manual_seed(0)
    module = LitVAE(
        vae.build(settings).double(),
        config.build(settings.objective),
        config.build(settings.optimizer),
        config.build(settings.scheduler) if settings.scheduler else None,
    )
    optimizer = module.configure_optimizers()
    images = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    told = []
    for _ in range(20):
        loss = module.objective(module.vae(images), images)["total"]
        optimizer["optimizer"].zero_grad()
        loss.backward()
        optimizer["optimizer"].step()
        optimizer["lr_scheduler"]["scheduler"].step()
        told.append(loss.item())
    return told


@pytest.mark.parametrize("cell", ["vanilla-vanilla", "encdec-encdec"])
def test_twenty_steps_are_as_they_were(run_of: Compose, cell: str) -> None:
    assert losses(run_of, cell) == pytest.approx(GOLDEN[cell], rel=1e-9)
