"""Posteriors, priors and likelihoods against closed forms, quadrature and each other."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal, kl_divergence

from vae_lab.evaluation.latent_space import use_of_latent
from vae_lab.evaluation.likelihood import importance_weighted
from vae_lab.model.distributions import DiagonalNormal, divergence
from vae_lab.model.interfaces import Posterior, Prior
from vae_lab.model.likelihoods.continuous_bernoulli import ContinuousBernoulli, ContinuousBernoulliLikelihood
from vae_lab.model.likelihoods.gaussian import START, GaussianLikelihood
from vae_lab.model.likelihoods.logistic import DiscretizedLogistic, LogisticLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.posteriors.flow import FlowPosterior
from vae_lab.model.posteriors.full import FullPosterior
from vae_lab.model.posteriors.hierarchical import HierarchicalPosterior
from vae_lab.model.posteriors.point import PointPosterior
from vae_lab.model.priors.flow import FlowPrior
from vae_lab.model.priors.hierarchical import HierarchicalPrior
from vae_lab.model.priors.mixture import MixturePrior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.priors.vamp import VampPrior
from vae_lab.model.vae import VAE

SHAPE = (1, 2, 3)
PIXELS = math.prod(SHAPE)

POSTERIORS: dict[str, Callable[[int], Posterior]] = {
    "diagonal": lambda dim: DiagonalPosterior([dim]),
    "full": lambda dim: FullPosterior([dim]),
    "flow": lambda dim: FlowPosterior([dim], layers=2, width=8, context=3),
    "hierarchical": lambda dim: HierarchicalPosterior([dim], width=5, context=3),
}
PRIORS: dict[str, Callable[[int], Prior]] = {
    "standard": lambda dim: StandardPrior([dim]),
    "mixture": lambda dim: MixturePrior([dim], components=3),
    "vamp": lambda dim: VampPrior([dim], components=3),
    "spline": lambda dim: FlowPrior([dim], layers=3, width=8, bins=4),
    "hierarchical": lambda dim: HierarchicalPrior([dim], width=5),
    "affine": lambda dim: FlowPrior([dim], kind="affine", layers=3, width=8),
}


def model_of(posterior: Posterior, prior: Prior, sigma: float = 0.3) -> VAE:
    """Linear networks without a sigmoid, in evaluation mode and 64 bits, away from their initialisation."""
    dim = posterior.latent_shape[0]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, posterior.num_parameters(posterior.latent_shape)))
    decoder = nn.Sequential(nn.Linear(dim, PIXELS), nn.Unflatten(1, SHAPE))
    likelihood = GaussianLikelihood(SHAPE, sigma=sigma, link="identity")
    model = VAE(encoder, posterior, prior, decoder, likelihood, SHAPE).double().eval().requires_grad_(False)
    for part, spread in ((posterior, 0.2), (prior, 0.4)):
        for parameter in part.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


GRID = torch.linspace(-12, 12, 601, dtype=torch.float64)
STEP = (GRID[1] - GRID[0]).item()
PLANE = torch.cartesian_prod(GRID, GRID)


def integral(values: Tensor) -> float:
    """The integral over the plane of a function's values on its grid."""
    return values.sum().item() * STEP**2


# --- Densities integrate to 1, and samples follow them -----------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_a_density_that_its_samples_follow(name: str) -> None:
    prior = model_of(DiagonalPosterior([2]), PRIORS[name](2)).prior()
    density = prior.log_prob(PLANE).exp()
    assert integral(density) == pytest.approx(1, abs=1e-3)
    mean = (density[:, None] * PLANE).sum(0) * STEP**2
    torch.testing.assert_close(prior.sample((20_000,)).mean(0), mean, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_posterior_is_a_density_that_its_samples_follow(name: str) -> None:
    model = model_of(POSTERIORS[name](2), StandardPrior([2]))
    posterior = model.posterior(model.encoder(torch.rand(1, *SHAPE, dtype=torch.float64)))
    density = posterior.log_prob(PLANE).exp()
    assert integral(density) == pytest.approx(1, abs=1e-3)
    mean = (density[:, None] * PLANE).sum(0) * STEP**2
    torch.testing.assert_close(posterior.sample((20_000,)).mean((0, 1)), mean, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_divergence_agrees_with_quadrature(posterior: str, prior: str) -> None:
    model = model_of(POSTERIORS[posterior](2), PRIORS[prior](2))
    parameters = model.encoder(torch.rand(1, *SHAPE, dtype=torch.float64))
    q, p = model.posterior(parameters), model.prior()
    log_q = q.log_prob(PLANE)
    expected = integral(log_q.exp() * (log_q - p.log_prob(PLANE)))
    many = model.posterior(parameters.expand(20_000, -1))
    found = divergence(many, p, many.sample())
    assert found.is_exact == (prior == "standard" and posterior in ("diagonal", "full"))
    spread = found.nats.std().item() / math.sqrt(len(found.nats))
    assert found.nats.mean().item() == pytest.approx(expected, abs=max(1e-3, 5 * spread))


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_a_flow_can_be_inverted_and_knows_its_jacobian(kind: Any, dim: int) -> None:
    flow = FlowPrior([dim], kind=kind, layers=3, width=8).double()
    z = 2 * torch.randn(4, dim, dtype=torch.float64)
    noise, log_determinant = flow.couplings(z)
    torch.testing.assert_close(flow.couplings.inverse(noise), z)
    for one, expected in zip(z, log_determinant, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda code: flow.couplings(code[None])[0][0], one)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)


def test_a_full_posterior_is_torchs_and_its_divergence_too() -> None:
    parameters = torch.randn(6, FullPosterior([3]).num_parameters((3,)), dtype=torch.float64)
    q = FullPosterior([3])(parameters)
    torch.testing.assert_close(q.covariance_matrix, q.scale_tril @ q.scale_tril.mT)
    torch.testing.assert_close(q.mean, parameters[:, :3])
    torch.testing.assert_close(q.scale_tril.diagonal(dim1=1, dim2=2), (parameters[:, 3:6] / 2).exp())
    standard = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(kl_divergence(q, StandardPrior([3]).double()()), kl_divergence(q, standard))
    diagonal = torch.cat([parameters[:, :6], torch.zeros(6, 3)], 1)
    z = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(
        FullPosterior([3])(diagonal).log_prob(z), DiagonalPosterior([3])(parameters[:, :6]).log_prob(z)
    )


@pytest.mark.parametrize("name", ["full", "flow", "hierarchical"])
def test_variances_stay_within_the_bounds_of_the_default_posterior(name: str) -> None:
    posterior = POSTERIORS[name](2)
    parameters = torch.full((3, posterior.num_parameters((2,))), 1000.0)
    assert posterior(parameters).rsample().isfinite().all()


# --- Models whose likelihood is known ----------------------------------------------------------------------

WEIGHT = torch.tensor([[0.9, -0.2], [0.1, 0.4], [0.3, 0.3], [-0.5, 0.2], [0.2, 0.6], [0.0, -0.3]], dtype=torch.float64)
OFFSET = torch.tensor([0.5, 0.4, 0.6, 0.5, 0.3, 0.5], dtype=torch.float64)
SIGMA = 0.3


class Fixed(Prior):
    """A given distribution."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__([2])
        self.distribution = distribution

    def forward(self) -> Distribution:
        return self.distribution


def linear_model(posterior: Posterior, prior: Prior) -> tuple[VAE, Tensor]:
    """x = W·z + b + σ·ε, and twelve images of it."""
    model = model_of(posterior, prior, SIGMA)
    model.decoder[0].weight.copy_(WEIGHT)
    model.decoder[0].bias.copy_(OFFSET)
    z = torch.randn(12, 2, dtype=torch.float64)
    images = z @ WEIGHT.T + OFFSET + SIGMA * torch.randn(12, PIXELS, dtype=torch.float64)
    return model, images.reshape(12, *SHAPE)


def marginal(images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log p(x) where z ~ N(mean, diag variance)."""
    covariance = WEIGHT @ variance.diag() @ WEIGHT.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    return MultivariateNormal(WEIGHT @ mean + OFFSET, covariance).log_prob(images.flatten(1))


def set_exact_posterior(model: VAE) -> None:
    """N(M⁻¹·Wᵀ·(x − b), σ²·M⁻¹), M = Wᵀ·W + σ²·1 (Tipping & Bishop 1999)."""
    inverse = torch.linalg.inv(WEIGHT.T @ WEIGHT + SIGMA**2 * torch.eye(2, dtype=torch.float64))
    root = torch.linalg.cholesky(SIGMA**2 * inverse)
    layer = model.encoder[1]
    layer.weight.zero_()
    layer.weight[:2] = inverse @ WEIGHT.T
    layer.bias.copy_(torch.cat([-inverse @ WEIGHT.T @ OFFSET, 2 * root.diagonal().log(), root[1:, 0] * 2**0.5]))


def bounds(model: VAE, images: Tensor, counts: Sequence[int]) -> dict[int, Tensor]:
    found = importance_weighted(model, images, counts, torch.Generator().manual_seed(0))
    return {k: found[f"iwae_{k}"] for k in counts}


def test_every_bound_of_probabilistic_pca_with_its_exact_posterior_is_the_likelihood() -> None:
    model, images = linear_model(FullPosterior([2]), StandardPrior([2]))
    set_exact_posterior(model)
    expected = marginal(images, torch.zeros(2).double(), torch.ones(2).double())
    for bound in bounds(model, images, [1, 10, 100]).values():
        torch.testing.assert_close(bound, expected, atol=1e-3, rtol=0)
    q, z, x = model(images)
    elbo = x.log_prob(images) - model.divergence(q, z).nats  # exact divergence, one sample of the reconstruction
    assert elbo.mean().item() == pytest.approx(expected.mean().item(), abs=0.7)


def mixture_of_pca() -> tuple[MixturePrior, Callable[[Tensor], Tensor]]:
    """A mixture prior, and log p(x) under it."""
    prior = MixturePrior([2], components=3)

    def expected(images: Tensor) -> Tensor:
        weights = prior.logits.log_softmax(0)
        parts = zip(prior.means, prior.log_variances.exp(), strict=True)
        return torch.stack([marginal(images, *part) for part in parts], 1).add(weights).logsumexp(1)

    return prior, expected


@pytest.mark.parametrize("name", POSTERIORS)
def test_bounds_of_a_mixture_of_pcas_rise_to_its_likelihood(name: str) -> None:
    prior, expected = mixture_of_pca()
    model, images = linear_model(FullPosterior([2]), prior)
    set_exact_posterior(model)
    if name != "full":  # off the mark: any other posterior
        posterior = POSTERIORS[name](2).double().requires_grad_(False)
        wide = model.encoder[1]
        model = VAE(model.encoder, posterior, prior, model.decoder, model.likelihood, SHAPE)
        more = posterior.num_parameters((2,))
        weight, bias = torch.zeros(more, PIXELS).double(), torch.zeros(more).double()
        weight[:2], bias[:4] = wide.weight[:2], wide.bias[:4]
        model.encoder[1] = nn.Linear(PIXELS, more).double()
        model.encoder[1].weight.data, model.encoder[1].bias.data = weight, bias
        model.requires_grad_(False)
    found = bounds(model, images, [1, 10, 100])
    truth = expected(images).mean().item()
    values = [found[k].mean().item() for k in (1, 10, 100)]
    assert values == sorted(values)
    assert values[-1] < truth + 0.05
    assert name != "full" or values[-1] == pytest.approx(truth, abs=0.05)


class ExactMixturePosterior(Posterior):
    """The posterior of a linear model under a mixture prior: a mixture of Gaussians."""

    def __init__(self, prior: MixturePrior) -> None:
        super().__init__([2])
        self.given = (prior,)

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        return PIXELS

    def forward(self, parameters: Tensor) -> Distribution:
        (prior,) = self.given
        centred = parameters - OFFSET
        precisions = torch.stack([WEIGHT.T @ WEIGHT / SIGMA**2 + (-one).exp().diag() for one in prior.log_variances])
        covariances = torch.linalg.inv(precisions)
        pull = (prior.means * (-prior.log_variances).exp())[None] + (centred @ WEIGHT / SIGMA**2)[:, None]
        means = (covariances @ pull[..., None]).squeeze(-1)
        parts = zip(prior.means, prior.log_variances.exp(), strict=True)
        images = parameters.reshape(-1, *SHAPE)
        logits = torch.stack([marginal(images, *part) for part in parts], 1) + prior.logits.log_softmax(0)
        components = MultivariateNormal(means, covariances.expand(len(parameters), -1, -1, -1))
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), components)


def test_every_bound_of_a_mixture_of_pcas_with_its_exact_posterior_is_the_likelihood() -> None:
    prior, expected = mixture_of_pca()
    model, images = linear_model(ExactMixturePosterior(prior), prior)
    model.encoder[1].weight.copy_(torch.eye(PIXELS))
    model.encoder[1].bias.zero_()
    for bound in bounds(model, images, [1, 10, 100]).values():
        torch.testing.assert_close(bound, expected(images), atol=1e-3, rtol=0)


# --- VampPrior ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_vamp_prior_is_the_mean_posterior_of_its_pseudo_inputs(name: str) -> None:
    model = model_of(POSTERIORS[name](2), VampPrior([2], components=4))
    z = torch.randn(5, 2, dtype=torch.float64)
    posterior = model.posterior(model.encoder(model.prior.images()))
    by_hand = torch.stack([posterior.log_prob(one).logsumexp(0) - math.log(4) for one in z])
    torch.testing.assert_close(model.prior().log_prob(z), by_hand)


def test_pseudo_inputs_are_trained_through_the_encoder_and_leave_its_statistics_alone() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 4), nn.BatchNorm1d(4))
    decoder = nn.Sequential(nn.Linear(2, PIXELS), nn.Unflatten(1, SHAPE))
    prior = VampPrior([2], components=7)
    VAE(encoder, DiagonalPosterior([2]), prior, decoder, GaussianLikelihood(SHAPE, sigma=0.3), SHAPE)
    before = encoder[2].running_mean.clone()
    prior().log_prob(torch.randn(3, 2)).sum().backward()
    assert torch.equal(encoder[2].running_mean, before)
    assert encoder.training
    assert encoder[2].training
    assert prior.logits.grad.abs().sum() > 0
    assert encoder[1].weight.grad.abs().sum() > 0
    assert prior.images().shape == (7, *SHAPE)
    assert 0 < prior.images().min() < prior.images().max() < 1


def test_a_vamp_prior_needs_the_shape_of_the_images() -> None:
    with pytest.raises(ValueError, match="image_shape"):
        VAE(nn.Identity(), DiagonalPosterior([2]), VampPrior([2]), nn.Identity(), GaussianLikelihood(SHAPE, sigma=0.3))


# --- Two levels --------------------------------------------------------------------------------------------


def test_the_lower_level_depends_on_the_upper_one_and_on_the_image() -> None:
    posterior = HierarchicalPosterior([4], width=5, context=3).double().requires_grad_(False)
    parameters = torch.randn(3, posterior.num_parameters((4,)), dtype=torch.float64)
    q = posterior(parameters)
    z = q.sample((5,))
    given = posterior.below(torch.cat([z[..., :2], parameters[:, 4:].expand(5, 3, 3)], -1))
    torch.testing.assert_close(q.log_prob(z), q.top.log_prob(z[..., :2]) + given.log_prob(z[..., 2:]))
    assert not torch.equal(q.bottom(z[..., :2]).mean, q.bottom(z[..., :2] + 1).mean)
    assert not torch.equal(q.mean[:, 2:], posterior(parameters + 1).mean[:, 2:])


def test_pseudo_inputs_of_two_levels_are_those_of_the_upper_one() -> None:
    model = model_of(POSTERIORS["hierarchical"](4), HierarchicalPrior([4], top="vamp", components=6, width=5))
    assert model.prior.images().shape == (6, *SHAPE)
    top = torch.randn(5, 2, dtype=torch.float64)
    posterior = model.posterior(model.encoder(model.prior.images())).top
    by_hand = torch.stack([posterior.log_prob(one).logsumexp(0) - math.log(6) for one in top])
    torch.testing.assert_close(model.prior().top.log_prob(top), by_hand)
    with pytest.raises(ValueError, match="posterior=hierarchical"):
        model_of(POSTERIORS["diagonal"](4), HierarchicalPrior([4], top="vamp"))


@pytest.mark.parametrize("shape", [[3], [4, 7, 7]])
@pytest.mark.parametrize("kind", [HierarchicalPosterior, HierarchicalPrior])
def test_two_levels_need_vectors_of_an_even_length(kind: Any, shape: list[int]) -> None:
    with pytest.raises(ValueError, match="even number of dimensions"):
        kind(shape)


def test_two_levels_of_linear_gaussians_are_one_gaussian() -> None:
    prior = HierarchicalPrior([2], width=5).double().requires_grad_(False)

    class Linear(nn.Module):
        def forward(self, given: Tensor) -> DiagonalNormal:
            return DiagonalNormal(0.7 * given, torch.zeros_like(given))

    prior.below = Linear()
    z = torch.randn(4000, 2, dtype=torch.float64)
    joint = MultivariateNormal(torch.zeros(2).double(), torch.tensor([[1.0, 0.7], [0.7, 1.49]]).double())
    torch.testing.assert_close(prior().log_prob(z), joint.log_prob(z))
    torch.testing.assert_close(torch.cov(prior().sample((200_000,)).T), joint.covariance_matrix, atol=0.02, rtol=0)


# --- Use of the latent space -------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_figures_of_the_latent_space_exist_for_every_pair(posterior: str, prior: str) -> None:
    model = model_of(POSTERIORS[posterior](4), PRIORS[prior](4))
    with torch.no_grad():
        found = use_of_latent(model, model.encoder(torch.rand(60, *SHAPE, dtype=torch.float64)))
    assert (found["kl_per_dimension"] is not None) == (posterior == "diagonal" and prior == "standard")
    assert 0 <= found["active_units"] <= 4
    for name in ("mutual_information_low", "mutual_information_high", "aggregate_kl_low", "aggregate_kl_high"):
        assert math.isfinite(found[name]), name


def test_active_units_of_a_flow_do_not_count_the_noise_of_their_estimate() -> None:
    model = model_of(POSTERIORS["flow"](3), StandardPrior([3]))
    same = model.encoder(torch.rand(1, *SHAPE, dtype=torch.float64)).expand(800, -1)
    assert use_of_latent(model, same)["active_units"] == 0
    moved = same.clone()
    moved[:, :3] += 3 * torch.randn(800, 3, dtype=torch.float64)
    assert use_of_latent(model, moved)["active_units"] == 3


def test_the_information_of_a_full_posterior_is_known() -> None:
    own, parameters = 0.5, torch.zeros(240, FullPosterior([2]).num_parameters((2,)), dtype=torch.float64)
    parameters[:, :2] = torch.randn(240, 2)
    parameters[:, 2:4] = 2 * math.log(own)
    found = use_of_latent(model_of(FullPosterior([2]), StandardPrior([2])), parameters)
    assert found["mutual_information_low"] == pytest.approx(math.log((1 + own**2) / own**2), abs=0.25)
    assert found["active_units"] == 2


def test_a_point_has_neither_density_nor_information() -> None:
    model = model_of(PointPosterior([3]), StandardPrior([3]))
    parameters = model.encoder(torch.rand(60, *SHAPE, dtype=torch.float64))
    q = model.posterior(parameters)
    assert torch.equal(q.sample(), q.mean)
    assert q.rsample((2,)).shape == (2, 60, 3)
    with pytest.raises(NotImplementedError):
        q.log_prob(q.mean)
    found = use_of_latent(model, parameters)
    assert found == {"kl_per_dimension": None, "active_units": found["active_units"]}


# --- Likelihoods -------------------------------------------------------------------------------------------

LEVELS = torch.arange(256, dtype=torch.float64) / 255
LOGITS = [-300.0, -20.0, -3.0, -0.1001, -0.0999, -1e-3, 0.0, 1e-5, 0.0999, 0.1001, 3.0, 20.0, 300.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_a_continuous_bernoulli_is_a_density_also_near_one_half(logit: float) -> None:
    pixel = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    x = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    density = pixel.log_prob(x).exp()
    assert density.mean().item() == pytest.approx(1, abs=1e-5)
    assert (density * x).mean().item() == pytest.approx(pixel.mean.item(), abs=1e-5)
    # In 32 bits, with a gradient that is x − mean.
    eta = torch.tensor(logit, requires_grad=True)
    single = ContinuousBernoulli(eta)
    log_density = single.log_prob(torch.tensor(0.25))
    log_density.backward()
    expected = pixel.log_prob(torch.tensor(0.25, dtype=torch.float64)).item()
    assert log_density.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert single.mean.item() == pytest.approx(pixel.mean.item(), abs=1e-6)
    assert eta.grad.item() == pytest.approx(0.25 - pixel.mean.item(), abs=1e-6)


def test_a_continuous_bernoulli_is_torchs_where_that_is_accurate() -> None:
    logits, x = 4 * torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    theirs = torch.distributions.ContinuousBernoulli(logits=logits, lims=(0.4999999, 0.5000001))
    torch.testing.assert_close(ContinuousBernoulli(logits).log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ContinuousBernoulli(logits).sample((40_000,)).mean(0), ContinuousBernoulli(logits).mean, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("location", "scale"), [(0.5, 0.1), (-0.3, 0.02), (0.3, 0.001), (1.6, 0.5), (0.999, 0.0009), (0.0, 3.0)]
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_masses_of_a_pixel_sum_to_one(location: float, scale: float, kind: torch.dtype) -> None:
    pixel = DiscretizedLogistic(torch.tensor(location, dtype=kind), torch.tensor(scale, dtype=kind))
    mass = pixel.log_prob(LEVELS.to(kind)).double().exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-6 if kind is torch.float64 else 1e-4)
    assert (mass * LEVELS).sum().item() == pytest.approx(pixel.mean.item(), abs=0.5 / 255)
    if kind is torch.float64:
        edges = torch.sigmoid((LEVELS[:-1] + 0.5 / 255 - pixel.location) / pixel.scale)
        ends = torch.zeros(1).double()
        torch.testing.assert_close(mass, torch.cat([edges, ends + 1]) - torch.cat([ends, edges]), atol=1e-9, rtol=1e-6)
        assert pixel.sample((50_000,)).mean().item() == pytest.approx(pixel.mean.item(), abs=0.01)


@pytest.mark.parametrize(
    ("likelihood", "channels"),
    [
        (GaussianLikelihood(SHAPE, sigma="per_pixel"), 2),
        (GaussianLikelihood(SHAPE, sigma="optimal"), 1),
        (LogisticLikelihood(SHAPE), 1),
        (LogisticLikelihood(SHAPE, scale="per_pixel"), 2),
        (ContinuousBernoulliLikelihood(SHAPE), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_likelihood_is_finite_for_any_output_of_the_decoder(likelihood: Any, channels: int) -> None:
    assert likelihood.channels(1) == channels
    images = torch.tensor([0.0, 1 / 255, 0.4, 128 / 255, 254 / 255, 1.0]).reshape(1, *SHAPE)
    for size in (0.0, 1.0, 30.0, 1e3):
        parameters = (size * torch.randn(4, channels, *SHAPE[1:])).requires_grad_()
        x = likelihood(parameters)
        log_density = x.log_prob(images.expand(4, *SHAPE))
        log_density.sum().backward()
        assert log_density.isfinite().all()
        assert parameters.grad.isfinite().all()
        assert ((x.mean >= 0) & (x.mean <= 1)).all()
        assert likelihood(parameters.bfloat16()).log_prob(images.expand(4, *SHAPE)).dtype == torch.float32


def test_the_optimal_sigma_is_the_error_of_the_batch_in_training_and_a_running_mean_of_it_elsewhere() -> None:
    likelihood = GaussianLikelihood(SHAPE, sigma="optimal")
    parameters = torch.randn(5, *SHAPE, requires_grad=True)
    images = torch.rand(5, *SHAPE)
    mean = torch.sigmoid(parameters)
    error = (mean - images).square().mean()
    found = likelihood(parameters).log_prob(images).mean()
    expected = -0.5 * PIXELS * ((2 * math.pi * error).log() + 1)
    torch.testing.assert_close(found, expected)
    # The gradient is that of the closed form, −(D/2)·ln MSE.
    (one,), (other,) = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (found, expected))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(likelihood.squared_error, 0.9 * torch.tensor(START) ** 2 + 0.1 * error.detach())
    for _ in range(200):
        likelihood(parameters).log_prob(images)
    stored = likelihood.eval().squared_error.clone()
    torch.testing.assert_close(stored, error.detach())
    likelihood(parameters).log_prob(images + 1)
    assert torch.equal(likelihood.squared_error, stored)
    torch.testing.assert_close(likelihood(parameters).log_prob(images).mean(), expected)


def test_sigma_per_pixel_starts_where_a_learned_one_does() -> None:
    images = torch.rand(3, *SHAPE)
    per_pixel, learned = (GaussianLikelihood(SHAPE, sigma=sigma) for sigma in ("per_pixel", "learned"))
    torch.testing.assert_close(
        per_pixel(torch.zeros(3, 2, *SHAPE[1:])).log_prob(images),
        learned(torch.zeros(3, *SHAPE)).log_prob(images),
        rtol=0.05,
        atol=0.05,
    )
