"""Every shipped YAML composes, builds and trains."""

from pathlib import Path

import pytest
import torch
from conftest import Compose

from vae_lab import config, vae
from vae_lab.cli import config_folder
from vae_lab.module import LitVAE

FILES = sorted(path.relative_to(config_folder()) for path in config_folder().glob("*/*.yaml"))
SHAPES = [[1, 28, 28], [3, 32, 32]]


def choices(group: str) -> list[str]:
    return [path.stem for path in FILES if path.parent.name == group]


def test_the_groups_are_those_of_the_root() -> None:
    assert {path.parent.name for path in FILES} == {
        "data", "encoder", "latent", "decoder", "objective", "optimizer", "scheduler", "trainer", "logger", "callbacks",
        "experiment",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_is_valid_and_its_targets_exist(run_of: Compose, path: Path) -> None:
    config.check_targets(run_of(f"{path.parent.name}={path.stem}").config)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("decoder", choices("decoder"))
@pytest.mark.parametrize("encoder", choices("encoder"))
def test_every_encoder_trains_with_every_decoder(run_of: Compose, encoder: str, decoder: str, shape: list[int]) -> None:
    settings = run_of(f"encoder={encoder}", f"decoder={decoder}", f"data.image_shape={shape}").config
    model = vae.build(settings)
    images = torch.rand(4, *shape)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.reconstruction.min() >= 0
    assert output.reconstruction.max() <= 1
    config.build(settings.objective)(output, images)["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("scheduler", choices("scheduler"))
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimiser_steps_under_every_scheduler(run_of: Compose, optimizer: str, scheduler: str) -> None:
    settings = run_of(
        f"optimizer={optimizer}", f"scheduler={scheduler}", "data.num_train=8", "data.batch_size=4", "latent.dim=4"
    ).config
    assert settings.scheduler is not None
    module = LitVAE(
        vae.build(settings),
        config.build(settings.objective),
        config.build(settings.optimizer),
        config.build(settings.scheduler),
    )
    both = module.configure_optimizers()
    before = [parameter.clone() for parameter in module.parameters()]
    rates = []
    images = torch.rand(4, 1, 28, 28)
    for _ in range(settings.scheduler.model_dump().get("total_steps", 20)):
        both["optimizer"].zero_grad()
        module.objective(module.vae(images), images)["total"].backward()
        both["optimizer"].step()
        rates.append(both["lr_scheduler"]["scheduler"].get_last_lr()[0])
        both["lr_scheduler"]["scheduler"].step()
    assert max(rates) == pytest.approx(settings.optimizer.lr)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    if scheduler != "constant":
        assert rates[-1] < 0.05 * settings.optimizer.lr
