"""The variational autoencoder, a plain module."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from pydantic import BaseModel
from torch import Tensor, nn

from vae_lab import config
from vae_lab.config import ConfigError, Problem
from vae_lab.model.blocks import FitError, Shape, complete, shapes_only
from vae_lab.model.latent import Gaussian, Posterior

AT_ONCE = 1000
"""Samples that are decoded together: more would take memory and no less time."""


class Output(NamedTuple):
    """What a forward pass gives to an objective."""

    reconstruction: Float[Tensor, "b c h w"]
    posterior: Posterior
    kl: Float[Tensor, "b z"]


class VAE(nn.Module):
    """Encode, sample, decode.

    `forward` is what is trained. The other methods are for use: they take no gradients, refuse images that the model
    was not made for, take tensors of any device and floating type, and give theirs on the model's device. Their results
    are those of a trained model in evaluation mode only (`model.eval()`; `vae_lab.load` gives it so).

    Args:
        encoder: (b, c, h, w) → (b, latent.num_parameters).
        latent: posterior and prior.
        decoder: (b, latent.dim) → (b, c, h, w), the mean of p(x | z).
        image_shape: channels, height and width of the images; without, images of any size are tried.
    """

    def __init__(
        self, encoder: nn.Module, latent: Gaussian, decoder: nn.Module, image_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = latent
        self.decoder = decoder
        self.image_shape = None if image_shape is None else tuple(image_shape)

    def forward(self, images: Float[Tensor, "b c h w"], noise: Float[Tensor, "b z"] | None = None) -> Output:
        """Images in [0, 1] to their reconstruction through one sample of the posterior."""
        posterior = self.latent.posterior(self.encoder(images))
        z = self.latent.sample(posterior, noise)
        return Output(self.decoder(z), posterior, self.latent.kl(posterior))

    @torch.no_grad()
    def encode(self, images: Shaped[Tensor, "..."]) -> Posterior:
        """The posterior of each image: its mean and log-variance, (b, z) each.

        Args:
            images: (b, c, h, w) in [0, 1].

        Raises:
            ValueError: for images of another shape, of whole numbers, or with values outside [0, 1].
        """
        return self.latent.posterior(self.encoder(self._checked(images, "images", "b")))

    @torch.no_grad()
    def decode(self, z: Shaped[Tensor, "..."]) -> Float[Tensor, "b c h w"]:
        """The mean image in [0, 1] of each latent vector.

        Args:
            z: (b, z), in units of the prior's standard deviation.

        Raises:
            ValueError: for vectors of another length.
        """
        _check_floating(z, "z")
        if z.dim() != 2 or z.shape[1] != self.latent.dim:
            raise ValueError(f"z must have shape (b, {self.latent.dim}), but got {_described(z)}")
        return self.decoder(self._moved(z))

    def reconstruct(self, images: Shaped[Tensor, "..."]) -> Float[Tensor, "b c h w"]:
        """Each image through the mean of its posterior: nothing is drawn, equal images give equal ones.

        Args:
            images: (b, c, h, w) in [0, 1].

        Raises:
            ValueError: as `encode`.
        """
        return self.decode(self.encode(images).mean)

    def sample(self, n: int, seed: int | None = None) -> Float[Tensor, "n c h w"]:
        """Images of `n` latent vectors drawn from the prior, N(0, I).

        Args:
            n: how many.
            seed: of the random stream, which is the same on every device; without, torch's own goes on.

        Raises:
            ValueError: for less than one.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.latent.dim, generator=generator, device="cpu", dtype=torch.float32)
        return torch.cat([self.decode(some) for some in torch.split(z, AT_ONCE)])

    def interpolate(
        self, a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."], steps: int
    ) -> Float[Tensor, "{steps} c h w"]:
        """Images on the straight line between the posterior means of two images, which are its ends.

        Args:
            a: where it begins, (c, h, w) in [0, 1].
            b: where it ends, likewise.
            steps: how many images, both ends among them.

        Raises:
            ValueError: as `encode`, or for less than two steps.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the two ends, but is {steps}")
        start, end = (self.encode(self._checked(image, name)[None]).mean for name, image in (("a", a), ("b", b)))
        return self.decode(torch.lerp(start, end, torch.linspace(0, 1, steps).to(start)[:, None]))

    def traverse(
        self, image: Shaped[Tensor, "..."], dims: Sequence[int], span: float = 3.0, steps: int = 9
    ) -> Float[Tensor, "d {steps} c h w"]:
        """A row of images for each of some latent dimensions: this one from −span to span, the others the image's own.

        Args:
            image: (c, h, w) in [0, 1]; the mean of its posterior is where the other dimensions stay.
            dims: which dimensions, counted from 0.
            span: how far, in standard deviations of the prior.
            steps: how many images in a row.

        Raises:
            ValueError: as `encode`, for a dimension that does not exist, or for less than two steps.
        """
        known = range(self.latent.dim)
        missing = [dim for dim in dims if dim not in known]
        if missing or not len(dims):
            rule = f"dims must be among the latent dimensions 0 to {self.latent.dim - 1}"
            raise ValueError(f"{rule}, but {f'{missing[0]} is not' if missing else 'there are none'}")
        if steps < 2:
            raise ValueError(f"steps must be at least 2, but is {steps}")
        if not 0 < span < math.inf:
            raise ValueError(f"span must be a finite number greater than 0, but is {span}")
        mean = self.encode(self._checked(image, "image")[None]).mean
        z = mean.repeat(len(dims), steps, 1)
        for row, dim in enumerate(dims):
            z[row, :, dim] = torch.linspace(-span, span, steps).to(z)
        images = self.decode(z.flatten(0, 1))
        return images.reshape(len(dims), steps, *images.shape[1:])

    def _checked(self, images: Tensor, name: str, *before: str) -> Tensor:
        """The images, where and in which type the model takes them."""
        _check_floating(images, name)
        rank = len(before) + 3
        if images.dim() != rank or (self.image_shape and images.shape[len(before) :] != self.image_shape):
            wanted = ", ".join(map(str, (*before, *(self.image_shape or ("channels", "height", "width")))))
            raise ValueError(f"{name} must have shape ({wanted}), but got {_described(images)}")
        low, high = map(float, images.aminmax()) if images.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):
            problem = "some are no numbers" if math.isnan(low) else f"go from {low:g} to {high:g}"
            raise ValueError(f"the values of {name} must lie in [0, 1], but {problem}")
        return self._moved(images)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.parameters(), torch.empty(0)))


def _check_floating(given: Tensor, name: str) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, but got a {type(given).__name__}; torch.as_tensor makes one")
    if not given.is_floating_point():
        hint = "; divide bytes by 255" if given.dtype is torch.uint8 else ""
        raise ValueError(f"{name} must be floating-point numbers, but got {_described(given)}{hint}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def build(settings: config.Config) -> VAE:
    """The model that a configuration describes, freshly initialised on the current default device.

    Raises:
        FitError: if a block does not fit.
    """
    latent = build_latent(settings)
    encoder, decoder = build_half("encoder", settings, latent), build_half("decoder", settings, latent)
    return VAE(encoder, latent, decoder, settings.data.image_shape)


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
    with shapes_only():
        model = build(settings)
        check_shapes(model, settings.data.image_shape)
        # On GPUs batch normalisation is synchronised.
        processes = settings.trainer.processes if settings.trainer.accelerator == "cpu" else 1
        size = settings.data.batch_size
        if any(batch // processes <= 1 for batch in (size, settings.data.num_train % size or size)):
            _check_single(model, torch.empty(1, *settings.data.image_shape), processes)


def check_shapes(model: VAE, image_shape: Sequence[int]) -> None:
    """Run both halves of a model that lies on the meta device, inside `shapes_only`.

    Raises:
        FitError: if one returns another shape than it must.
    """
    shape = tuple(image_shape)
    _check_side("encoder", model.encoder, torch.empty(2, *shape), (model.latent.num_parameters,))
    _check_side("decoder", model.decoder, torch.empty(2, model.latent.dim), shape)


def _check_single(model: VAE, image: Tensor, processes: int) -> None:
    try:
        model(image)
    except ValueError as error:  # batch normalisation of a vector
        raise FitError(
            f"data.batch_size: leaves {'a process with' if processes > 1 else 'a batch of'} one image, which these "
            f"blocks cannot be trained on ({error}); take another batch_size or num_train, or normalization: none"
        ) from error


def _check_side(key: str, network: nn.Module, given: Tensor, wanted: tuple[int, ...]) -> None:
    try:
        got = network(given)
    except Exception as error:  # a user's forward() may raise anything
        raise FitError(f"{key}: does not take input of shape {tuple(given.shape[1:])} ({error})") from error
    if not isinstance(got, Tensor) or tuple(got.shape[1:]) != wanted:
        seen = f"shape {tuple(got.shape[1:])}" if isinstance(got, Tensor) else type(got).__name__
        raise FitError(f"{key}: must return shape {wanted} for each image, but returns {seen}")
