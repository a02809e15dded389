"""A refactor keeps twenty seeded steps as they were."""

import pytest
import torch
from conftest import Compose

from vae_lab import config
from vae_lab.model import vae
from vae_lab.training.module import LitVAE

# Made by this file's `losses`, in 64 bits, so that the processor's way of summing does not show.
GOLDEN = {
    "vanilla-vanilla": [
        0.091760386989,
        0.089324851001,
        0.088331371999,
        0.086400642016,
        0.086568337264,
        0.084234778843,
        0.085575641142,
        0.082260241798,
        0.084859116988,
        0.083844414511,
        0.083508594717,
        0.082213193154,
        0.082077163427,
        0.08235359031,
        0.081185358258,
        0.081232118819,
        0.080665224632,
        0.079809213938,
        0.078438021493,
        0.078607713593,
    ],
    "encdec-encdec": [
        0.093130004173,
        0.089497512062,
        0.087661621946,
        0.086440341222,
        0.085952018642,
        0.083862043655,
        0.084851186583,
        0.083210164414,
        0.083559615365,
        0.083078992353,
        0.080157776582,
        0.081374400707,
        0.08012058017,
        0.080528160209,
        0.080561679198,
        0.07658118868,
        0.076504175263,
        0.075205405871,
        0.079393530079,
        0.074047531306,
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
    found = []
    for _ in range(20):
        loss = module.objective(module.vae, images, 0.0)["total"]
        optimizer["optimizer"].zero_grad()
        loss.backward()
        optimizer["optimizer"].step()
        optimizer["lr_scheduler"]["scheduler"].step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("cell", ["vanilla-vanilla", "encdec-encdec"])
def test_twenty_steps_are_as_they_were(run_of: Compose, cell: str) -> None:
    assert losses(run_of, cell) == pytest.approx(GOLDEN[cell], rel=1e-9)
