"""`objective=elbo`: the evidence lower bound in nats, with the usual changes to its KL term."""

import math
from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config.base import Count, NonNegative, Share
from vae_lab.model.classifier import squared_feature_distance
from vae_lab.model.distributions import by_dimension
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, bound_of, posteriors_of, with_penalty

WARM_UP, CYCLES = 0.5, 4
"""Defaults of Fu et al. 2019."""


class Elbo(Objective):
    """The negative evidence lower bound, −E log p(x | z) + β · KL(q(z | x) ‖ p(z)) (Kingma & Welling 2014).

    Both terms are sums over pixels or dimensions, averaged over images, with one z per image. β = 1 is the bound;
    other values weight the KL divergence (Higgins et al. 2017). `kl` is the divergence itself, whatever `total` makes
    of it.

    Args:
        beta: weight of the KL term.
        schedule: `constant`; `linear`: β, or the target, grows from 0 during the warm-up and then stays; `cyclical`: it
            does so again in every cycle (Fu et al. 2019).
        warm_up: the share of the training, or of a cycle, during which it grows; None is one half.
        cycles: the number of cycles of `schedule=cyclical`; None is 4.
        free_bits: λ in nats: a latent dimension adds max(λ, its mean KL divergence over the batch) to `total`, so that
            λ nats per dimension are free (Kingma et al. 2016). 0 for none.
        target_kl: C in nats per image: the KL term is β · |KL − C| (Burgess et al. 2018). None for none.
        perceptual: weight of the squared distance of x and x̂ in the features of the Fashion-MNIST classifier that ships
            (Hou et al. 2017). 0 for none.

    Raises:
        ValueError: if two keys exclude each other.
    """

    units: Mapping[str, str] = {"total": "nats per image", "reconstruction": "nats per image", "kl": "nats per image"}
    penalty_unit = "nats per image"
    is_likelihood_trained = True

    def __init__(
        self,
        *,
        beta: NonNegative = 1.0,
        schedule: Literal["constant", "linear", "cyclical"] = "constant",
        warm_up: Share | None = None,
        cycles: Count | None = None,
        free_bits: NonNegative = 0.0,
        target_kl: NonNegative | None = None,
        perceptual: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        if warm_up is not None and schedule == "constant":
            raise ValueError(f"warm_up is {warm_up}, but schedule=constant has none; take schedule=linear or cyclical")
        if cycles is not None and schedule != "cyclical":
            raise ValueError(f"cycles is {cycles}, but schedule={schedule} has none; take schedule=cyclical")
        if target_kl is not None and free_bits:
            raise ValueError(
                f"target_kl is {target_kl} and free_bits is {free_bits}, which both keep the KL divergence from "
                "vanishing; take one of the two"
            )
        if target_kl is not None and schedule == "cyclical":
            raise ValueError("target_kl grows once, but schedule is cyclical; take schedule=linear or constant")
        self.beta = beta
        self.schedule = schedule
        self.warm_up = WARM_UP if warm_up is None else warm_up
        self.cycles = CYCLES if cycles is None else cycles
        self.free_bits = free_bits
        self.target_kl = target_kl
        self.perceptual = perceptual
        self.needs_whole_batch = bool(free_bits) or target_kl is not None
        self.units = {
            **type(self).units,
            **({"target_kl": "nats per image"} if target_kl is not None else {}),
            **({"beta": "weight"} if target_kl is None and schedule != "constant" else {}),
            **({"perceptual": "squared distance of features"} if perceptual else {}),
        }

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        kl = vae.divergence(q, z).nats.mean()
        terms = {"reconstruction": reconstruction, "kl": kl}
        grown = self._grown(progress)
        if self.target_kl is not None:
            target = self.target_kl * grown
            terms["target_kl"] = kl.new_full((), target)
            total = reconstruction + self.beta * (kl - target).abs()
        else:
            beta = self.beta * grown
            if self.schedule != "constant":
                terms["beta"] = kl.new_full((), beta)
            total = reconstruction + beta * (self._with_free_bits(vae, q) if self.free_bits else kl)
        if self.perceptual:
            terms["perceptual"] = squared_feature_distance(x.mean, images)
            total = total + self.perceptual * terms["perceptual"]
        return with_penalty({"total": total, **terms}, q)

    def per_image(self, vae: VAE, images: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, " b"]] | None:
        if self.needs_whole_batch or self.perceptual or vae.posterior.has_penalty:
            return None
        q, z, x = vae(images)
        reconstruction, kl = -x.log_prob(images), vae.divergence(q, z).nats
        return {"total": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def _grown(self, progress: float) -> float:
        """The share of β or of the target that is in effect."""
        if self.schedule == "constant":
            return 1.0
        cycles = self.cycles if self.schedule == "cyclical" else 1
        within = progress * cycles - min(math.floor(progress * cycles), cycles - 1)
        return min(1.0, within / self.warm_up)

    def _with_free_bits(self, vae: VAE, q: Distribution) -> Float[Tensor, ""]:
        dimensions = by_dimension(q, vae.prior())
        assert dimensions is not None, "see `check`"
        return dimensions.flatten(1).mean(0).clamp(min=self.free_bits).sum()

    def check(self, vae: VAE) -> None:
        """`free_bits` need a KL divergence of each latent dimension."""
        if self.free_bits and by_dimension(posteriors_of(vae), vae.prior()) is None:
            raise ValueError(
                f"free_bits is {self.free_bits}, but {type(vae.posterior).__name__} and {type(vae.prior).__name__} "
                "have no KL divergence of each latent dimension; take posterior=diagonal and prior=standard, or "
                "target_kl"
            )

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl, for every β and schedule."""
        return bound_of(terms)
