"""The interfaces that a model's parts are written against; each concrete class has a file of its own beside this one.

Whatever is random is a `torch.distributions.Distribution`. The keys of a part's section are the
keyword-only arguments of its class; the other arguments come from vae_lab, as each interface says.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

if TYPE_CHECKING:
    from vae_lab.model.vae import VAE


class Latent(ABC):
    """The shape of a code. Built from the keys of its section alone."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one z: (dim,) for vectors."""


class Posterior(nn.Module, ABC):
    """Encoder output to q(z | x). Built with `latent_shape`.

    Args:
        latent_shape: the shape of one z.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean",)
    """Attributes of the distribution that an exported encoder puts out, each (b, *latent_shape)."""

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    @abstractmethod
    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """How many numbers describe one posterior: what the encoder puts out for each image."""

    @abstractmethod
    def forward(self, parameters: Float[Tensor, "b p"]) -> Distribution:
        """The posteriors of a batch: batch shape (b,), event shape `latent_shape`; `rsample` where it is trained."""


class Prior(nn.Module, ABC):
    """p(z). Built with `latent_shape`; may look at `self.model` once it belongs to one.

    Args:
        latent_shape: the shape of one z.
    """

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self._owner: tuple[VAE, ...] = ()  # in a tuple, lest torch takes it for a part of the prior

    def belong_to(self, model: "VAE") -> None:
        """Called by the model that the prior is part of."""
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

    data: ClassVar[Literal["real", "levels", "binary"]]
    """The images it is for: real numbers, 256 grey levels, or 0 and 1. Nats are compared within one kind only."""

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def channels(self, image_channels: int) -> int:
        """How many channels the decoder puts out for images of so many."""
        return image_channels

    @abstractmethod
    def forward(self, parameters: Float[Tensor, "b p h w"]) -> Distribution:
        """Distributions of images: batch shape (b,), event shape (c, h, w); its `mean` is the reconstruction."""
