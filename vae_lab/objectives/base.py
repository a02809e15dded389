"""The interface of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.model.interfaces import Posterior
from vae_lab.model.quantized import Quantized
from vae_lab.model.vae import VAE


class Objective(nn.Module, ABC):
    """Map a model, images and the progress of training to named terms; training minimises `total`.

    The keys of its section are the keyword-only arguments of its class.
    """

    units: Mapping[str, str] = {}
    """Unit of every term, such as `nats per image`. The terms include `total`, `reconstruction` and `kl`.

    An attribute of the class, or of the object if its keys decide which terms it has.
    """

    only_likelihood: ClassVar[str | None] = None
    """Class name of the only likelihood that it can train; None if it can train any."""

    beta_sets_sigma: ClassVar[bool] = False
    """Whether the key `beta` determines the σ of its Gaussian likelihood."""

    needs_density: ClassVar[bool] = True
    """Whether it uses the density of the posterior, as a KL divergence does. False also allows `posterior=point`."""

    penalty_unit: ClassVar[str] = ""
    """Unit of the term `commitment`, if it adds the penalty of a quantised posterior; see `with_penalty`.

    Empty if it does not: it then cannot train such posteriors.
    """

    needs_whole_batch: bool = False
    """Whether its terms depend on all images of a batch together, and are not means over images."""

    is_likelihood_trained: ClassVar[bool | None] = None
    """Whether its models are measured in nats, under the model's likelihood. False if the loss is not a likelihood."""

    @abstractmethod
    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        """The terms, each the mean over the images of a batch.

        Args:
            vae: the model.
            images: with values in [0, 1].
            progress: the fraction of training that is done, from 0 to 1. It is 1 in validation and test.
        """

    def per_image(self, vae: VAE, images: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, " b"]] | None:
        """The terms of each image in test, whose means over the images are the terms; None if they are no such means.

        The report computes from them how far a figure depends on the choice of the test images.
        """
        return None

    def units_for(self, posterior: Posterior | type[Posterior]) -> dict[str, str]:
        """The unit of each term with a posterior: some have a penalty, which is a further term."""
        return {**self.units, **({"commitment": self.penalty_unit} if posterior.has_penalty else {})}

    def check(self, vae: VAE) -> None:
        """Check before training that this objective can train a model; called on the meta device.

        Raises:
            ValueError: if it cannot, in one sentence with the alternatives.
        """
        return

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """The evidence lower bound in nats per image, computed from the terms; None if they do not determine it."""
        return None

    def measures(self, vae: VAE) -> bool:
        """Whether a model under this objective is measured in nats."""
        return bool(self.is_likelihood_trained) and vae.posterior.has_density


def bound_of(terms: Mapping[str, float]) -> float:
    """−reconstruction − kl, for terms that are both in nats per image."""
    return -terms["reconstruction"] - terms["kl"]


def with_penalty(
    terms: dict[str, Float[Tensor, ""]], q: Distribution, scale: float = 1.0, weight: float = 1.0
) -> dict[str, Float[Tensor, ""]]:
    """The terms with the penalty of a quantised posterior as `commitment`, which is added to `total`.

    Args:
        terms: the terms without it; they stay as they are if the posterior has no penalty.
        q: the posteriors of a batch.
        scale: the factor from nats per image to the unit of the objective.
        weight: the weight of the term in `total`.
    """
    if not isinstance(q, Quantized) or q.penalty is None:
        return terms
    commitment = scale * q.penalty.mean()
    return terms | {"total": terms["total"] + weight * commitment, "commitment": commitment}


def posteriors_of(vae: VAE) -> Distribution:
    """Two posteriors of a model, whatever their parameters, to see what they can do."""
    parameters = torch.zeros(2, vae.posterior.num_parameters(vae.latent_shape))
    found: Distribution = vae.posterior(parameters)
    return found
