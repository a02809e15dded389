"""The model as a whole."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from torch import nn

from vae_lab import vae
from vae_lab.config import ConfigError
from vae_lab.describe import describe


class LinearEncoder(nn.Module):
    """A user's own encoder: not made of blocks."""

    def __init__(self, image_shape: list[int], num_parameters: int, extra: int = 0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(image_shape).numel(), num_parameters + extra))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def test_forward_encodes_samples_and_decodes(run_of: Compose) -> None:
    model = vae.build(run_of("latent.dim=4").config).eval()
    images, noise = torch.rand(3, 1, 28, 28), torch.randn(3, 4)
    output = model(images, noise)
    mean, log_variance = model.encoder(images).chunk(2, dim=1)
    torch.testing.assert_close(output.reconstruction, model.decoder(mean + (log_variance / 2).exp() * noise))
    assert output.kl.shape == (3, 4)


def test_without_noise_each_pass_draws_its_own(run_of: Compose) -> None:
    model = vae.build(run_of("latent.dim=4").config).eval()
    images = torch.rand(3, 1, 28, 28)
    assert not torch.equal(model(images).reconstruction, model(images).reconstruction)


def test_a_users_class_is_an_encoder(run_of: Compose) -> None:
    settings = run_of(*replace_encoder(LinearEncoder)).config
    vae.check_fit(settings)
    assert isinstance(vae.build(settings).encoder, LinearEncoder)


@pytest.mark.parametrize(
    ("extra", "words"), [("+encoder.extra=1", "must return shape (512,)"), ("+encoder.nonsense=1", "cannot be built")]
)
def test_a_users_class_that_does_not_fit_is_told(run_of: Compose, extra: str, words: str) -> None:
    with pytest.raises(ConfigError, match="^encoder: ") as raised:
        vae.check_fit(run_of(*replace_encoder(LinearEncoder), extra).config)
    assert words in str(raised.value)


def replace_encoder(kind: type[Any]) -> list[str]:
    keys = ("activation", "normalization", "blocks")
    return [f"+encoder._target_={kind.__module__}.{kind.__name__}", *(f"~encoder.{key}" for key in keys)]


@pytest.mark.parametrize(("images", "fits"), [(65, False), (66, True), (64, True)])
def test_a_last_batch_of_one_image_is_told_where_it_cannot_be_normalised(
    run_of: Compose, images: int, fits: bool
) -> None:
    settings = run_of(f"data.num_train={images}", "encoder.blocks=[{dense:8}]").config
    if fits:
        vae.check_fit(settings)
    else:
        with pytest.raises(ConfigError, match=r"^data\.batch_size: leaves a batch of one image"):
            vae.check_fit(settings)
    vae.check_fit(run_of(f"data.num_train={images}").config)  # maps of more than one pixel


def test_a_latent_must_say_its_sizes(run_of: Compose) -> None:
    with pytest.raises(ConfigError, match=r"^latent: must have num_parameters and dim, which Identity has not"):
        vae.check_fit(run_of("latent._target_=torch.nn.Identity").config)


class FromNumpy(nn.Module):
    """Makes its weights on the CPU, whatever torch's default device is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(np.arange(28, dtype=np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.columns


def test_a_block_may_make_its_weights_of_an_array(run_of: Compose) -> None:
    settings = run_of(f"encoder.blocks=[{{_target_: {__name__}.FromNumpy}}, {{down: 4}}]").config
    vae.check_fit(settings)
    assert describe(settings).parameters > 0
    assert vae.build(settings).encoder.blocks[0].columns.device.type == "cpu"


class LazyEncoder(nn.Module):
    """A user's own encoder, made of a class that finds its channels itself."""

    def __init__(self, image_shape: list[int], num_parameters: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_parameters))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def test_a_lazy_encoder_has_its_weights_when_it_is_built(run_of: Compose) -> None:
    settings = run_of(*replace_encoder(LazyEncoder)).config
    vae.check_fit(settings)
    assert sum(parameter.numel() for parameter in vae.build(settings).encoder.parameters()) == 785 * 512


def test_the_check_allocates_nothing(run_of: Compose) -> None:
    vae.check_fit(run_of("encoder.blocks=[{dense:100000},{dense:100000}]").config)  # 40 GB of weights
