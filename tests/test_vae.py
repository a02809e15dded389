"""The model as a whole."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from torch import nn

from vae_lab.config import ConfigError
from vae_lab.model import vae
from vae_lab.model.describe import describe
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.randomness import drawn_from


class LinearEncoder(nn.Module):
    """A user's own encoder: not made of blocks."""

    def __init__(self, image_shape: list[int], num_parameters: int, extra: int = 0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(image_shape).numel(), num_parameters + extra))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def test_forward_encodes_samples_and_decodes(run_of: Compose) -> None:
    model = vae.build(run_of("latent.dim=4").config).eval()
    images = torch.rand(3, 1, 28, 28)
    with drawn_from(torch.Generator().manual_seed(0)):
        output = model(images)
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mean, log_variance = model.encoder(images).chunk(2, dim=1)
    z = mean + (log_variance / 2).exp() * noise
    torch.testing.assert_close(output.z, z)
    torch.testing.assert_close(output.likelihood.mean, torch.sigmoid(model.decoder(z)))
    assert output.posterior.batch_shape == output.likelihood.batch_shape == (3,)
    assert output.posterior.event_shape == (4,)
    assert output.likelihood.event_shape == (1, 28, 28)


def test_each_pass_draws_its_own_noise(run_of: Compose) -> None:
    model = vae.build(run_of("latent.dim=4").config).eval()
    images = torch.rand(3, 1, 28, 28)
    assert not torch.equal(model(images).z, model(images).z)


def test_the_divergence_of_the_default_model_is_exact(run_of: Compose) -> None:
    model = vae.build(run_of("latent.dim=4").config).eval()
    q, z, _ = model(torch.rand(3, 1, 28, 28))
    found = model.divergence(q, z)
    assert found.is_exact
    torch.testing.assert_close(found.nats, 0.5 * (q.mean**2 + q.variance - q.log_variance - 1).sum(1))


def test_a_users_class_is_an_encoder(run_of: Compose) -> None:
    settings = run_of(*replace_encoder(LinearEncoder)).config
    vae.check_fit(settings)
    assert isinstance(vae.build(settings).encoder, LinearEncoder)


@pytest.mark.parametrize(
    ("extra", "words"), [("+encoder.extra=1", "must return shape (512,)"), ("+encoder.nonsense=1", "cannot be built")]
)
def test_a_users_class_that_does_not_fit_is_reported(run_of: Compose, extra: str, words: str) -> None:
    with pytest.raises(ConfigError, match="^encoder: ") as raised:
        vae.check_fit(run_of(*replace_encoder(LinearEncoder), extra).config)
    assert words in str(raised.value)


def replace_encoder(kind: type[Any]) -> list[str]:
    keys = ("activation", "normalization", "blocks")
    return [f"+encoder._target_={kind.__module__}.{kind.__name__}", *(f"~encoder.{key}" for key in keys)]


@pytest.mark.parametrize(("images", "fits"), [(65, False), (66, True), (64, True)])
def test_a_last_batch_of_one_image_that_cannot_be_normalised_is_reported(
    run_of: Compose, images: int, fits: bool
) -> None:
    settings = run_of(f"data.num_train={images}", "encoder.blocks=[{dense:8}]").config
    if fits:
        vae.check_fit(settings)
    else:
        with pytest.raises(ConfigError, match=r"^data\.batch_size: leaves a batch of one image"):
            vae.check_fit(settings)
    vae.check_fit(run_of(f"data.num_train={images}").config)  # maps of more than one pixel


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        ("latent", "Latent", ["latent._target_=torch.nn.Identity"]),
        ("posterior", "Posterior", [f"posterior._target_={__name__}.Impostor"]),
        ("prior", "Prior", [f"prior._target_={__name__}.Impostor"]),
        ("likelihood", "Likelihood", ["objective=elbo", f"likelihood._target_={__name__}.Impostor"]),
    ],
)
def test_a_part_must_be_what_its_group_is_for(run_of: Compose, part: str, kind: str, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"^{part}: must be a vae_lab\.{kind}, but \S+ makes a (Identity|Impostor)"):
        vae.check_fit(run_of(*words).config)


class Impostor(nn.Module):
    """Takes the arguments of any part, and is none."""

    def __init__(self, **arguments: object) -> None:
        super().__init__()


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


# --- For use -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(run_of: Compose) -> vae.VAE:
    torch.manual_seed(0)
    return vae.build(run_of("latent.dim=4").config).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 28, 28)


def test_encode_gives_the_posterior_without_gradients(model: vae.VAE, images: torch.Tensor) -> None:
    posterior = model.encode(images)
    parameters = torch.cat([posterior.mean, posterior.log_variance], 1)
    torch.testing.assert_close(parameters, model.encoder(images).detach())
    assert not parameters.requires_grad
    assert torch.equal(model.encode(images.double()).mean, posterior.mean)


def test_reconstruct_goes_through_the_mean(model: vae.VAE, images: torch.Tensor) -> None:
    reconstructed = model.reconstruct(images)
    assert torch.equal(reconstructed, model.decode(model.encode(images).mean))
    assert torch.equal(reconstructed, model.likelihood(model.decoder(model.encoder(images)[:, :4])).mean)
    assert not reconstructed.requires_grad


def test_samples_are_the_decoded_stream_of_their_seed(model: vae.VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(model.sample(5, seed=7), model.decode(z))
    assert not torch.equal(model.sample(5), model.sample(5))
    state = torch.get_rng_state()
    model.sample(5, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(vae, "AT_ONCE", 2)
    torch.testing.assert_close(model.sample(5, seed=7), model.decode(z))


def test_the_prior_is_drawn_from_one_stream(model: vae.VAE) -> None:
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    z = model.draw(6, generator)
    assert torch.equal(z, torch.randn(6, 4, generator=again))
    assert model.latent_shape == z.shape[1:]
    assert model.latent_dim == 4
    assert not torch.equal(model.draw(6, generator), z)  # the stream continues


def test_an_interpolation_ends_in_both_reconstructions(model: vae.VAE, images: torch.Tensor) -> None:
    walk = model.interpolate(images[0], images[1], 5)
    ends = model.encode(images[:2]).mean
    torch.testing.assert_close(walk[[0, -1]], model.reconstruct(images[:2]))
    torch.testing.assert_close(walk[[2]], model.decode(ends.mean(0, keepdim=True)))
    assert walk.shape == (5, 1, 28, 28)


def test_a_traversal_moves_one_dimension_and_leaves_the_others(model: vae.VAE, images: torch.Tensor) -> None:
    rows = model.traverse(images[0], [3, 1], span=2.0, steps=5)
    assert rows.shape == (2, 5, 1, 28, 28)
    z = model.encode(images[:1]).mean.repeat(5, 1)
    z[:, 3] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(rows[0], model.decode(z))
    assert model.traverse(images[0], range(4)).shape == (4, 9, 1, 28, 28)


NOTHING = torch.zeros(1, 28, 28)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (
            lambda vae: vae.encode(torch.zeros(2, 3, 32, 32)),
            "images must have shape (b, 1, 28, 28), but got float32 of",
        ),
        (
            lambda vae: vae.encode(NOTHING),
            "images must have shape (b, 1, 28, 28), but got float32 of shape (1, 28, 28)",
        ),
        (lambda vae: vae.encode(torch.zeros(2, 1, 28, 28).byte()), "but got uint8 of shape (2, 1, 28, 28); divide"),
        (lambda vae: vae.encode(torch.full((2, 1, 28, 28), 255.0)), "must lie in [0, 1], but go from 255 to 255"),
        (lambda vae: vae.reconstruct(-torch.ones(1, 1, 28, 28)), "must lie in [0, 1], but go from -1 to -1"),
        (lambda vae: vae.reconstruct(torch.full((1, 1, 28, 28), math.nan)), "but some are no numbers"),
        (
            lambda vae: vae.decode(torch.zeros(2, 5)),
            "z must have shape (b, 4), but got float32 of shape (2, 5)",
        ),
        (lambda vae: vae.decode(torch.zeros(4)), "but got float32 of shape (4,)"),
        (lambda vae: vae.decode(torch.zeros(2, 4).int()), "but got int32 of shape (2, 4)"),
        (lambda vae: vae.sample(0), "n must be at least 1, but is 0"),
        (lambda vae: vae.interpolate(NOTHING, NOTHING, 1), "steps must be at least 2, the two ends, but is 1"),
        (lambda vae: vae.interpolate(NOTHING, NOTHING[None], 3), "b must have shape (1, 28, 28), but got float32 of"),
        (lambda vae: vae.interpolate(NOTHING - 1, NOTHING, 3), "a must lie in [0, 1], but go from -1 to -1"),
        (lambda vae: vae.traverse(NOTHING, [4]), "dims must be among the latent dimensions 0 to 3, but 4 is not"),
        (
            lambda vae: vae.traverse(NOTHING, [0, -1]),
            "dims must be among the latent dimensions 0 to 3, but -1 is not",
        ),
        (lambda vae: vae.traverse(NOTHING, []), "but there are none"),
        (lambda vae: vae.traverse(NOTHING, [0], steps=1), "steps must be at least 2, but is 1"),
        (lambda vae: vae.traverse(NOTHING, [0], span=math.inf), "span must be a finite number greater than 0"),
        (lambda vae: vae.traverse(NOTHING[:, 1:], [0]), "image must have shape (1, 28, 28), but got float32 of"),
    ],
)
def test_bad_input_is_reported_in_one_sentence(model: vae.VAE, use: Callable[[vae.VAE], object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        use(model)
    assert "\n" not in str(raised.value)


def test_a_model_of_a_users_own_halves_needs_no_image_shape() -> None:
    model = vae.VAE(
        LinearEncoder([1, 4, 4], 6),
        DiagonalPosterior([3]),
        StandardPrior([3]),
        nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4))),
        GaussianLikelihood([1, 4, 4], sigma=0.1),
    )
    assert model.reconstruct(torch.rand(2, 1, 4, 4)).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="images must have shape"):
        model.encode(torch.rand(1, 4, 4))


def test_no_images_are_encoded_to_none(model: vae.VAE) -> None:
    assert model.encode(torch.zeros(0, 1, 28, 28)).mean.shape == (0, 4)
