"""The variational autoencoder, a plain module."""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from vae_lab import config
from vae_lab.blocks import FitError, Shape, complete, shapes_only
from vae_lab.config import ConfigError, Problem
from vae_lab.latent import Gaussian, Posterior


class Output(NamedTuple):
    """What a forward pass gives to an objective."""

    reconstruction: Float[Tensor, "b c h w"]
    posterior: Posterior
    kl: Float[Tensor, "b z"]


class VAE(nn.Module):
    """Encode, sample, decode.

    Args:
        encoder: (b, c, h, w) → (b, latent.num_parameters).
        latent: posterior and prior.
        decoder: (b, latent.dim) → (b, c, h, w), the mean of p(x | z).
    """

    def __init__(self, encoder: nn.Module, latent: Gaussian, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = latent
        self.decoder = decoder

    def forward(self, images: Float[Tensor, "b c h w"], noise: Float[Tensor, "b z"] | None = None) -> Output:
        """Images in [0, 1] to their reconstruction through one sample of the posterior."""
        posterior = self.latent.posterior(self.encoder(images))
        z = self.latent.sample(posterior, noise)
        return Output(self.decoder(z), posterior, self.latent.kl(posterior))


def build(settings: config.Config) -> VAE:
    """The model that a configuration describes, freshly initialised on the current default device.

    Raises:
        FitError: if a block does not fit.
    """
    latent = build_latent(settings)
    return VAE(build_half("encoder", settings, latent), latent, build_half("decoder", settings, latent))


def build_latent(settings: config.Config) -> Any:
    """The latent space of a configuration.

    Raises:
        FitError: if it lacks what encoder and decoder must know of it.
    """
    latent = _side("latent", settings.latent)
    if not hasattr(latent, "num_parameters") or not hasattr(latent, "dim"):
        raise FitError(f"latent: must have num_parameters and dim, which {type(latent).__name__} has not")
    return latent


def build_half(side: Literal["encoder", "decoder"], settings: config.Config, latent: Any) -> nn.Module:
    """The encoder or the decoder of a configuration.

    Raises:
        FitError: if a block does not fit.
    """
    image_shape = settings.data.image_shape
    ends = {"num_parameters": latent.num_parameters} if side == "encoder" else {"latent_dim": latent.dim}
    given = tuple(image_shape) if side == "encoder" else (latent.dim,)
    return _side(side, getattr(settings, side), given, image_shape=list(image_shape), **ends)


def _side(key: str, node: BaseModel, given: Shape = (), **arguments: Any) -> Any:
    try:
        built = config.build(node, **arguments)
        if isinstance(built, nn.Module):
            built.to(torch.get_default_device())  # a class may make weights elsewhere: of a NumPy array, say
            complete(built, given)
        return built
    except (FitError, ConfigError):
        raise
    except Exception as error:  # a user's constructor may raise anything
        raise FitError(f"{key}: cannot be built ({type(error).__name__}: {error})") from error


def check_fit(settings: config.Config) -> None:
    """Run the model once on the meta device, where nothing is allocated or computed.

    Raises:
        ConfigError: if a block does not fit, or an encoder or decoder returns another shape than it must.
    """
    try:
        _check_fit(settings)
    except FitError as error:
        key, _, text = str(error).partition(": ")
        raise ConfigError(Problem(key, text)) from error


def _check_fit(settings: config.Config) -> None:
    shape = tuple(settings.data.image_shape)
    with shapes_only():
        model = build(settings)
        images = torch.empty(2, *shape)
        _check_side("encoder", model.encoder, images, (model.latent.num_parameters,))
        _check_side("decoder", model.decoder, torch.empty(2, model.latent.dim), shape)
        if settings.data.num_train % settings.data.batch_size == 1 or settings.data.batch_size == 1:
            _check_single(model, images[:1])


def _check_single(model: VAE, image: Tensor) -> None:
    try:
        model(image)
    except ValueError as error:  # batch normalisation of a vector
        raise FitError(
            "data.batch_size: leaves a batch of one image, which these blocks cannot be trained on "
            f"({error}); take another batch_size or num_train, or normalization: none"
        ) from error


def _check_side(key: str, network: nn.Module, given: Tensor, wanted: tuple[int, ...]) -> None:
    try:
        got = network(given)
    except Exception as error:  # a user's forward() may raise anything
        raise FitError(f"{key}: does not take input of shape {tuple(given.shape[1:])} ({error})") from error
    if not isinstance(got, Tensor) or tuple(got.shape[1:]) != wanted:
        seen = f"shape {tuple(got.shape[1:])}" if isinstance(got, Tensor) else type(got).__name__
        raise FitError(f"{key}: must return shape {wanted} for each image, but returns {seen}")
