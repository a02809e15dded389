"""The interfaces of a model's parts; each implementation has its own file in a folder beside this one.

Every random quantity is a `torch.distributions.Distribution`. The keys of a part's section are the keyword-only
arguments of its class; vae_lab passes the other arguments, which each interface lists.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

if TYPE_CHECKING:
    from vae_lab.model.vae import VAE


DataKind = Literal["real", "levels", "binary"]
"""Real numbers, 256 grey levels, or 0 and 1."""

HALF_LEVEL = 0.5 / 255
"""Half the distance of two grey levels."""


class Latent(ABC):
    """The shape of a latent code. Built from the keys of its section only."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one z: (dim,) for vectors, (channels, height, width) for maps."""


class Posterior(nn.Module, ABC):
    """Encoder output to q(z | x). Built with `latent_shape`.

    Args:
        latent_shape: the shape of one z.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean",)
    """Attributes of the distribution that an exported encoder puts out; the first is `mean`, (b, *latent_shape)."""

    is_spatial: ClassVar[bool] = False
    """Whether the parameters of a map are themselves channels of its height and width, one block after the other.

    The encoder then ends with a convolution, otherwise with a dense layer.
    """

    is_quantized: ClassVar[bool] = False
    """Whether its codes are those of a codebook; see `model.quantized`. Its prior and its objective must suit that."""

    has_penalty: ClassVar[bool] = False
    """Whether its distributions have a `penalty`, (b,), which objectives add to their total."""

    needs_whole_batch: bool = False
    """Whether its penalty depends on all images of a batch together, and is not a mean over images."""

    has_density: ClassVar[bool] = True
    """Whether its distributions have a `log_prob`. Without one there is no KL divergence, and nothing in nats."""

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def as_codes(self, numbers: Float[Tensor, "b z"]) -> Float[Tensor, "b ..."]:
        """A number for each latent dimension in the shape of the codes, (b, *latent_shape)."""
        return numbers if len(self.latent_shape) == 1 else numbers.reshape(-1, *self.latent_shape)

    @abstractmethod
    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """The number of parameters of one posterior: the size of the encoder's output for each image."""

    @abstractmethod
    def forward(self, parameters: Float[Tensor, "b p"]) -> Distribution:
        """The posteriors of a batch: batch shape (b,), event shape `latent_shape`; training needs `rsample`."""


class Prior(nn.Module, ABC):
    """p(z). Built with `latent_shape`; may use `self.model` once it is part of a model.

    Args:
        latent_shape: the shape of one z.
    """

    is_quantized: ClassVar[bool] = False
    """Whether it is over the codes of a quantised posterior."""

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self._owner: tuple[VAE, ...] = ()  # in a tuple, so that torch does not register it as a submodule

    def images(self) -> Float[Tensor, "k c h w"] | None:
        """Images that the prior is made of, such as pseudo-inputs, with values in [0, 1]; None if there are none."""
        return None

    def belong_to(self, model: "VAE") -> None:
        """Set the model; the model itself calls this."""
        self._owner = (model,)

    @property
    def model(self) -> "VAE":
        """The model that the prior is part of."""
        (model,) = self._owner
        return model

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution of one z: batch shape (), event shape `latent_shape`."""


class Likelihood(nn.Module, ABC):
    """Decoder output to p(x | z). Built with `image_shape`.

    Args:
        image_shape: channels, height and width of the images.
    """

    data: ClassVar[DataKind]
    """The images that it models: real numbers, 256 grey levels, or 0/1. Nats are comparable within one kind only."""

    needs_whole_batch: bool = False
    """Whether its densities in training depend on all images of a batch."""

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def channels(self, image_channels: int) -> int:
        """The number of decoder output channels for images with this many channels."""
        return image_channels

    def log_masses(self, x: Distribution, images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"] | None:
        """Log-probabilities of images of 256 grey levels: a density is integrated over each level, ± ½ · 1/255.

        Args:
            x: the distributions of the images, from `forward` in evaluation mode.
            images: whose pixels are among the levels.

        Returns:
            None if they are not known: bits per dimension are null then.
        """
        return None if self.data == "real" else x.log_prob(images)

    @abstractmethod
    def forward(self, parameters: Float[Tensor, "b p h w"]) -> Distribution:
        """Distributions of images: batch shape (b,), event shape (c, h, w); its `mean` is the reconstruction."""
