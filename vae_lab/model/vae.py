"""The variational autoencoder, a plain module."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from pydantic import BaseModel
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab import config
from vae_lab.config import ConfigError, Problem, Shape
from vae_lab.config.vocabulary import FitError
from vae_lab.model.blocks.building import complete
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.distributions import Divergence, divergence
from vae_lab.model.interfaces import Latent, Likelihood, Posterior, Prior
from vae_lab.model.randomness import drawn_from

AT_ONCE = 1000
"""Samples that are decoded together: larger batches take more memory without being faster."""


Side = Literal["encoder", "decoder"]
SIDES: tuple[Side, Side] = ("encoder", "decoder")


class Output(NamedTuple):
    """The result of a forward pass: q(z | x), one sample z of it for each image, and p(x | z)."""

    posterior: Distribution
    z: Float[Tensor, "b ..."]
    likelihood: Distribution


class VAE(nn.Module):
    """Encode, sample, decode.

    Training calls `forward`. The other methods are for using a trained model: they compute no gradients, reject images
    of another shape, accept tensors of any device and floating type, and return tensors on the model's device. Call
    them in evaluation mode (`model.eval()`); `vae_lab.load` returns a model in evaluation mode.

    Args:
        encoder: (b, c, h, w) → (b, posterior.num_parameters).
        posterior: the encoder's output → q(z | x).
        prior: p(z).
        decoder: (b, *latent_shape) → (b, likelihood.channels(c), h, w).
        likelihood: the decoder's output → p(x | z).
        image_shape: channels, height and width of the images; None accepts images of any size.
    """

    def __init__(
        self,
        encoder: nn.Module,
        posterior: Posterior,
        prior: Prior,
        decoder: nn.Module,
        likelihood: Likelihood,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.posterior = posterior
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.latent_shape = posterior.latent_shape
        self.image_shape = None if image_shape is None else tuple(image_shape)
        prior.belong_to(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Output:
        """Encode images in [0, 1], draw one z of each posterior, and decode it."""
        q = self.posterior(self.encoder(images))
        z = q.rsample()
        return Output(q, z, self.likelihood(self.decoder(z)))

    def divergence(self, q: Distribution, z: Float[Tensor, "b ..."]) -> Divergence:
        """KL(q(z | x) ‖ p(z)) of each image in nats; estimated at z if it has no closed form."""
        return divergence(q, self.prior(), z)

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n ..."]:
        """Draw codes from the prior, the same on every device. All pictures and metrics of samples decode these.

        Args:
            n: number of codes.
            generator: the random stream, on the CPU.
        """
        with drawn_from(generator):
            return self.prior().sample((n,))

    @property
    def latent_dim(self) -> int:
        """Z, the number of values in one code."""
        return math.prod(self.latent_shape)

    @torch.no_grad()
    def encode(self, images: Shaped[Tensor, "..."]) -> Distribution:
        """The posterior of each image, with its `mean` (b, *latent_shape) and, by default, `log_variance`.

        Args:
            images: (b, c, h, w) in [0, 1].

        Raises:
            ValueError: if the images have another shape, are integers, or have values outside [0, 1].
        """
        return self.posterior(self.encoder(self._checked(images, "images", "b")))

    @torch.no_grad()
    def decode(self, z: Shaped[Tensor, "..."]) -> Float[Tensor, "b c h w"]:
        """The mean image of each code: the mean of p(x | z).

        Args:
            z: (b, *latent_shape).

        Raises:
            ValueError: if the codes have another shape.
        """
        _check_floating(z, "z")
        if z.shape[1:] != self.latent_shape:
            raise ValueError(
                f"z must have shape (b, {', '.join(map(str, self.latent_shape))}), but got {_described(z)}"
            )
        return self.likelihood(self.decoder(self._moved(z))).mean

    def reconstruct(self, images: Shaped[Tensor, "..."]) -> Float[Tensor, "b c h w"]:
        """Encode images and decode the posterior means. Nothing is sampled: equal images give equal results.

        Args:
            images: (b, c, h, w) in [0, 1].

        Raises:
            ValueError: see `encode`.
        """
        return self.decode(self.encode(images).mean)

    def sample(self, n: int, seed: int | None = None) -> Float[Tensor, "n c h w"]:
        """Decode `n` codes drawn from the prior.

        Args:
            n: number of images.
            seed: seed of the random stream, which is the same on every device; None uses torch's global generator.

        Raises:
            ValueError: if `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        z = self.draw(n, torch.default_generator if seed is None else torch.Generator().manual_seed(seed))
        return torch.cat([self.decode(some) for some in torch.split(z, AT_ONCE)])

    def interpolate(
        self, a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."], steps: int
    ) -> Float[Tensor, "{steps} c h w"]:
        """Decode codes on the straight line between the posterior means of two images, both ends included.

        Args:
            a: the first image, (c, h, w) in [0, 1].
            b: the last image, (c, h, w) in [0, 1].
            steps: number of images, both ends included.

        Raises:
            ValueError: see `encode`; also if `steps` is less than 2.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the two ends, but is {steps}")
        start, end = (self.encode(self._checked(image, name)[None]).mean for name, image in (("a", a), ("b", b)))
        weights = torch.linspace(0, 1, steps).to(start).reshape(-1, *(1 for _ in self.latent_shape))
        return self.decode(torch.lerp(start, end, weights))

    def traverse(
        self, image: Shaped[Tensor, "..."], dims: Sequence[int], span: float = 3.0, steps: int = 9
    ) -> Float[Tensor, "d {steps} c h w"]:
        """A row of images for each dimension in `dims`: it varies from −span to span, the others keep their values.

        Args:
            image: (c, h, w) in [0, 1]; the other dimensions keep the values of its posterior mean.
            dims: the latent dimensions, counted from 0; those of a map in the order of its flattened numbers.
            span: the largest distance from 0, in standard deviations of the prior.
            steps: number of images in a row.

        Raises:
            ValueError: see `encode`; also if a dimension does not exist, or `steps` is less than 2.
        """
        known = range(self.latent_dim)
        missing = [dim for dim in dims if dim not in known]
        if missing or not len(dims):
            rule = f"dims must be among the latent dimensions 0 to {len(known) - 1}"
            raise ValueError(f"{rule}, but {f'{missing[0]} is not' if missing else 'there are none'}")
        if steps < 2:
            raise ValueError(f"steps must be at least 2, but is {steps}")
        if not 0 < span < math.inf:
            raise ValueError(f"span must be a finite number greater than 0, but is {span}")
        mean = self.encode(self._checked(image, "image")[None]).mean
        z = mean.flatten(1).repeat(len(dims), steps, 1)
        for row, dim in enumerate(dims):
            z[row, :, dim] = torch.linspace(-span, span, steps).to(z)
        images = self.decode(z.reshape(-1, *self.latent_shape))
        return images.reshape(len(dims), steps, *images.shape[1:])

    def _checked(self, images: Tensor, name: str, *before: str) -> Tensor:
        """The images on the model's device and in its type, after their shape and values are checked."""
        _check_floating(images, name)
        dims = len(before) + 3
        if images.dim() != dims or (self.image_shape and images.shape[len(before) :] != self.image_shape):
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
    """Build the model of a configuration, freshly initialised on the current default device.

    Raises:
        FitError: if a block does not fit, or a part is not of the type that its group requires.
    """
    distributions = build_distributions(settings)
    encoder, decoder = (build_half(side, settings, distributions) for side in SIDES)
    posterior, prior, likelihood = distributions
    try:
        return VAE(encoder, posterior, prior, decoder, likelihood, settings.data.image_shape)
    except ValueError as error:
        raise FitError(f"prior: does not fit the model ({error})") from error


class Distributions(NamedTuple):
    """The parts of a model between and behind its networks."""

    posterior: Posterior
    prior: Prior
    likelihood: Likelihood


def build_distributions(settings: config.Config) -> Distributions:
    """Build the posterior, prior and likelihood of a configuration.

    Raises:
        FitError: if one is not of the type that its group requires.
    """
    latent_shape = list(build_latent(settings).shape)
    return Distributions(
        _part("posterior", settings.posterior, Posterior, latent_shape=latent_shape),
        _part("prior", settings.prior, Prior, latent_shape=latent_shape),
        _part("likelihood", settings.likelihood, Likelihood, image_shape=list(settings.data.image_shape)),
    )


def build_latent(settings: config.Config) -> Latent:
    """Build the latent space of a configuration.

    Raises:
        FitError: if it is not a `Latent`.
    """
    found: Latent = _part("latent", settings.latent, Latent)
    return found


def build_half(side: Side, settings: config.Config, distributions: Distributions) -> nn.Module:
    """Build the encoder or decoder of a configuration, for the distribution whose parameters it puts out.

    Raises:
        FitError: if a block does not fit.
    """
    channels, *size = settings.data.image_shape
    latent_shape = distributions.posterior.latent_shape
    is_map = len(latent_shape) == 3
    if side == "encoder":
        count = distributions.posterior.num_parameters(latent_shape)
        of_map = is_map and distributions.posterior.is_spatial and isinstance(settings.encoder, config.Network)
        further: dict[str, Any] = {"latent_shape": latent_shape} if of_map else {}
        return _side(
            side, settings.encoder, (channels, *size), image_shape=[channels, *size], num_parameters=count, **further
        )
    image_shape = [distributions.likelihood.channels(channels), *size]
    further = {"latent_shape": latent_shape} if is_map and isinstance(settings.decoder, config.Network) else {}
    return _side(
        side, settings.decoder, latent_shape, image_shape=image_shape, latent_dim=math.prod(latent_shape), **further
    )


def _part(key: str, node: BaseModel, kind: Any, **arguments: Any) -> Any:
    built = _side(key, node, **arguments)
    if not isinstance(built, kind):
        name = node.model_dump()["_target_"]
        raise FitError(f"{key}: must be a vae_lab.{kind.__name__}, but {name} makes a {type(built).__name__}")
    return built


def _side(key: str, node: BaseModel, given: Shape = (), **arguments: Any) -> Any:
    try:
        built = config.build(node, **arguments)
        if isinstance(built, nn.Module):
            built.to(torch.get_default_device())  # a class may create weights elsewhere, e.g. from NumPy
            complete(built, given)
        return built
    except (FitError, ConfigError):
        raise
    except Exception as error:  # a user's constructor may raise anything
        raise FitError(f"{key}: cannot be built ({type(error).__name__}: {error})") from error


def check_fit(settings: config.Config) -> None:
    """Run the model once on the meta device, where nothing is allocated or computed.

    Raises:
        ConfigError: if a block does not fit, or the encoder or decoder returns a wrong shape.
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
        # On GPUs batch normalisation is synchronised across processes.
        processes = settings.trainer.processes if settings.trainer.accelerator == "cpu" else 1
        size = settings.data.batch_size
        if any(batch // processes <= 1 for batch in (size, settings.data.num_train % size or size)):
            _check_single(model, torch.empty(1, *settings.data.image_shape), processes)


def check_shapes(model: VAE, image_shape: Sequence[int]) -> None:
    """Run both halves of a model on the meta device; call it inside `shapes_only`.

    Raises:
        FitError: if one returns a wrong shape.
    """
    shape = tuple(image_shape)
    _check_side("encoder", model.encoder, torch.empty(2, *shape), (model.posterior.num_parameters(model.latent_shape),))
    _check_side(
        "decoder", model.decoder, torch.empty(2, *model.latent_shape), (model.likelihood.channels(shape[0]), *shape[1:])
    )


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
