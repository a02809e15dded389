"""The numbers' definitions, by hand, against the published table and against exact likelihoods."""

import math

import pytest
import torch
from conftest import Compose, shipped_choices
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace, MultivariateNormal
from torch.nn.functional import binary_cross_entropy

from vae_lab import config
from vae_lab.config import likelihood_variance
from vae_lab.model import vae
from vae_lab.model.interfaces import Likelihood, Prior
from vae_lab.model.likelihoods.bernoulli import BernoulliLikelihood
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective
from vae_lab.objectives.elbo import Elbo
from vae_lab.objectives.mse_kl import MseKl
from vae_lab.report.tables import PUBLISHED
from vae_lab.training.parts import TERMS


class Constant(nn.Module):
    """Puts out the rows of a table, whatever it is given."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, _: Tensor) -> Tensor:
        return self.rows


def model_of(means: Tensor, reconstructions: Tensor, likelihood: Likelihood | None = None) -> VAE:
    """A model whose posteriors have these means and variance 1, and whose decoder puts out these images."""
    shape, dim = reconstructions.shape[1:], means.shape[1]
    return VAE(
        Constant(torch.cat([means, torch.zeros_like(means)], 1)),
        DiagonalPosterior([dim]),
        StandardPrior([dim]),
        Constant(reconstructions),
        likelihood or GaussianLikelihood(shape, sigma=1.0, link="identity"),
        shape,
    )


def values(objective: Objective, model: VAE, images: Tensor) -> dict[str, float]:
    return {term: value.item() for term, value in objective(model, images, 0.0).items()}


# --- Squared error -----------------------------------------------------------------------------------------


def test_terms_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 0.5]).reshape(1, 1, 2, 2)
    reconstruction = torch.tensor([0.5, 1.0, 0.5, 0.0]).reshape(1, 1, 2, 2)
    means = torch.tensor([[2.0, 6.0]]).sqrt()  # KL divergences of 1 and 3 nats
    losses = values(MseKl(beta=0.1), model_of(means, reconstruction), images)
    assert tuple(losses) == TERMS
    # (0.25 + 0 + 0 + 0.25) / 4, (1 + 3) / 2, 0.125 + 0.1 · 2
    assert [round(losses[term], 6) for term in TERMS] == [0.325, 0.125, 2.0]


@pytest.mark.parametrize("objective", [MseKl(beta=0.01), Elbo(beta=0.5)], ids=["mse_kl", "elbo"])
def test_each_image_weighs_alike(objective: Objective) -> None:
    torch.manual_seed(0)
    images, reconstructions, means = torch.rand(6, 3, 4, 5), torch.rand(6, 3, 4, 5), torch.randn(6, 7)
    whole = values(objective, model_of(means, reconstructions), images)
    each = [
        values(objective, model_of(means[i : i + 1], reconstructions[i : i + 1]), images[i : i + 1]) for i in range(6)
    ]
    for term in TERMS:
        assert whole[term] == pytest.approx(sum(one[term] for one in each) / 6, rel=1e-6)


def test_beta_zero_is_an_autoencoder() -> None:
    losses = values(MseKl(beta=0.0), model_of(torch.ones(1, 2), torch.zeros(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))
    assert losses["total"] == losses["reconstruction"] == 1


@pytest.mark.parametrize("cell", PUBLISHED)
def test_the_published_table_follows_this_convention(cell: str) -> None:
    row = PUBLISHED[cell]
    assert row.total == pytest.approx(row.reconstruction + 0.01 * row.kl, abs=1e-4)


def test_the_total_of_mse_kl_is_the_elbo_of_its_gaussian_in_other_units() -> None:
    beta, dim, shape = 0.01, 7, (3, 4, 5)
    pixels, sigma = math.prod(shape), likelihood_variance(beta, shape, dim) ** 0.5
    torch.manual_seed(0)
    images, reconstructions, means = torch.rand(6, *shape), torch.rand(6, *shape), torch.randn(6, dim)
    model = model_of(means, reconstructions, GaussianLikelihood(shape, sigma=sigma, link="identity"))
    terms, in_nats = (values(one, model, images) for one in (MseKl(beta=beta), Elbo(beta=1.0)))
    constant = 0.5 * pixels * math.log(2 * math.pi * sigma**2)
    assert in_nats["total"] == pytest.approx(dim / beta * terms["total"] + constant, rel=1e-5)
    assert MseKl(beta=beta).elbo(terms, model) == pytest.approx(-in_nats["total"], rel=1e-5)
    assert Elbo(beta=1.0).elbo(in_nats, model) == pytest.approx(-in_nats["total"], rel=1e-6)


def test_without_a_kl_term_there_is_no_bound() -> None:
    model = model_of(torch.ones(1, 2), torch.zeros(1, 1, 2, 2))
    assert MseKl(beta=0.0).elbo({"reconstruction": 0.1, "kl": 0.2}, model) is None
    assert not MseKl(beta=0.0).measures(model)
    assert MseKl(beta=0.1).measures(model)
    assert Elbo(beta=0.0).measures(model)


# --- Nats --------------------------------------------------------------------------------------------------


def test_the_elbo_of_a_gaussian_with_the_exact_posterior_is_its_likelihood() -> None:
    """x = w·z + σ·ε: the bound of one z is exact, on average over z."""
    weights, variance = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64), 0.5
    precision = 1 + (weights @ weights / variance).item()
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(1, 4, bias=False).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.stack([weights / variance / precision, torch.zeros(4)]))
        encoder.bias.copy_(torch.tensor([0.0, -math.log(precision)]))
        decoder.weight.copy_(weights[:, None])
    model = VAE(
        nn.Sequential(nn.Flatten(), encoder),
        DiagonalPosterior([1]),
        StandardPrior([1]),
        nn.Sequential(decoder, nn.Unflatten(1, (1, 2, 2))),
        GaussianLikelihood([1, 2, 2], sigma=variance**0.5, link="identity"),
        [1, 2, 2],
    ).double()
    images = torch.randn(50, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), drawn_from(torch.Generator().manual_seed(1)):
        losses = values(Elbo(beta=1.0), model, images.repeat(4000, 1, 1, 1))
    covariance = torch.outer(weights, weights) + variance * torch.eye(4, dtype=torch.float64)
    likelihood = MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(images.flatten(1))
    assert -losses["total"] == pytest.approx(likelihood.mean().item(), abs=5e-3)


def test_the_elbo_of_binary_images_by_hand() -> None:
    torch.manual_seed(0)
    logits, means = torch.randn(6, 1, 4, 5), torch.randn(6, 3)
    images = torch.randint(2, logits.shape).float()
    losses = values(Elbo(beta=0.5), model_of(means, logits, BernoulliLikelihood([1, 4, 5])), images)
    expected = binary_cross_entropy(torch.sigmoid(logits), images, reduction="sum").item() / 6
    kl = 0.5 * means.square().sum().item() / 6
    assert losses == {
        "total": pytest.approx(expected + 0.5 * kl, rel=1e-5),
        "reconstruction": pytest.approx(expected, rel=1e-5),
        "kl": pytest.approx(kl, rel=1e-5),
    }


class Wide(Prior):
    """Torch has no rule for the divergence from it."""

    def forward(self) -> Distribution:
        return torch.distributions.Independent(Laplace(torch.zeros(self.latent_shape), torch.ones(())), 1)


@pytest.mark.parametrize(("objective", "parts"), [(MseKl(beta=0.1), 3), (Elbo(), 1)], ids=["mse_kl", "elbo"])
def test_a_divergence_without_a_closed_form_is_estimated_at_the_z_that_was_drawn(
    objective: Objective, parts: int
) -> None:
    model = model_of(torch.randn(6, 3), torch.rand(6, 1, 4, 5))
    model.prior = Wide([3])
    images = torch.rand(6, 1, 4, 5)
    with drawn_from(torch.Generator().manual_seed(0)):
        losses = values(objective, model, images)
    with drawn_from(torch.Generator().manual_seed(0)):
        q, z, _ = model(images)
    expected = (q.log_prob(z) - model.prior().log_prob(z)).mean().item()
    assert losses["kl"] == pytest.approx(expected / parts, rel=1e-5)


# --- Every objective ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_choices("objective"))
def test_every_term_has_a_unit_and_is_one_number(run_of: Compose, name: str) -> None:
    settings = run_of(f"objective={name}", "latent.dim=4", "encoder=mlp", "decoder=mlp").config
    objective = config.build(settings.objective)
    losses = objective(vae.build(settings), torch.rand(4, 1, 28, 28), 0.5)
    assert {*losses} >= {*TERMS}
    assert all(objective.units[term] for term in losses)
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    losses["total"].backward()
