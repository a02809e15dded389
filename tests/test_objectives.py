"""The numbers' definitions, by hand, against the published table and against exact likelihoods."""

import itertools
import math
from collections import defaultdict
from typing import Any, Literal

import pytest
import torch
import yaml
from conftest import Compose, shipped_choices
from kills import check_resuming
from scipy.integrate import quad
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Laplace,
    MultivariateNormal,
    Normal,
)
from torch.nn.functional import binary_cross_entropy

from vae_lab import config, results
from vae_lab.config import ConfigError, config_folder, likelihood_variance
from vae_lab.evaluation.runs import validation_bound
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.classifier import load_classifier, squared_feature_distance
from vae_lab.model.distributions import DiagonalNormal, StandardNormal
from vae_lab.model.interfaces import Likelihood, Posterior, Prior
from vae_lab.model.likelihoods.bernoulli import BernoulliLikelihood
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.posteriors.point import PointPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective
from vae_lab.objectives.beta_tc import BetaTc, decompose, log_weights
from vae_lab.objectives.dip import Dip, mean_covariance
from vae_lab.objectives.elbo import Elbo
from vae_lab.objectives.iwae import Iwae
from vae_lab.objectives.mmd import SCALES, Mmd, squared_mmd
from vae_lab.objectives.mse_kl import MseKl
from vae_lab.objectives.rae import Rae
from vae_lab.report import prepare
from vae_lab.training import parts, runner
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


def test_the_published_table_follows_this_convention() -> None:
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for one in yaml.safe_load((config_folder() / "published/seed.yaml").read_text())["figures"]:
        rows["{encoder}-{decoder}".format(**one["where"])][one["metric"]] = one["value"]
    assert len(rows) == 4
    for row in rows.values():
        expected = row["train.reconstruction"] + 0.01 * row["train.kl"]
        assert row["train.total"] == pytest.approx(expected, abs=1e-4)


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
    """The bound of one z is exact, on average over z."""
    images = torch.randn(50, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), drawn_from(torch.Generator().manual_seed(1)):
        losses = values(Elbo(beta=1.0), linear_gaussian(), images.repeat(4000, 1, 1, 1))
    covariance = torch.outer(WEIGHTS, WEIGHTS) + VARIANCE * torch.eye(4, dtype=torch.float64)
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


# --- Schedules, free bits, targets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "betas"),
    [
        ({"schedule": "linear"}, [0, 0.5, 1, 1, 1]),
        ({"schedule": "linear", "warm_up": 1.0}, [0, 0.25, 0.5, 0.75, 1]),
        ({"schedule": "linear", "warm_up": 0.25}, [0, 1, 1, 1, 1]),
        ({"schedule": "cyclical", "cycles": 2}, [0, 1, 0, 1, 1]),
        ({"schedule": "cyclical", "cycles": 1, "warm_up": 1.0}, [0, 0.25, 0.5, 0.75, 1]),
        ({"schedule": "cyclical", "cycles": 3, "warm_up": 1.0}, [0, 0.75, 0.5, 0.25, 1]),
        ({"schedule": "cyclical"}, [0, 0, 0, 0, 1]),
    ],
    ids=str,
)
def test_beta_grows_as_its_schedule_says(keys: dict[str, Any], betas: list[float]) -> None:
    objective, model, images = (
        Elbo(beta=2.0, **keys),
        model_of(torch.ones(3, 2), torch.rand(3, 1, 2, 2)),
        torch.rand(3, 1, 2, 2),
    )
    for progress, beta in zip((0.0, 0.25, 0.5, 0.75, 1.0), betas, strict=True):
        terms = {term: value.item() for term, value in objective(model, images, progress).items()}
        assert terms["beta"] == pytest.approx(2 * beta)
        assert terms["total"] == pytest.approx(terms["reconstruction"] + 2 * beta * terms["kl"], rel=1e-6)
    assert {*objective.units} == {*terms}


def test_free_bits_are_free_in_each_dimension_on_average_over_the_batch() -> None:
    means = torch.tensor([[2.0, 0.0, 1.0], [6.0, 0.2, 3.0]]).sqrt()  # mean KL divergences of 2, 0.05 and 1 nats
    terms = values(Elbo(beta=10.0, free_bits=1.5), model_of(means, torch.zeros(2, 1, 2, 2)), torch.zeros(2, 1, 2, 2))
    assert terms["kl"] == pytest.approx(3.05)
    assert terms["total"] == pytest.approx(terms["reconstruction"] + 10 * (2 + 1.5 + 1.5))


@pytest.mark.parametrize(
    ("schedule", "progress", "target"), [("constant", 0.0, 3.0), ("linear", 0.25, 1.5), ("linear", 1.0, 3.0)]
)
def test_the_divergence_is_held_at_its_target(
    schedule: Literal["constant", "linear"], progress: float, target: float
) -> None:
    objective = Elbo(beta=100.0, target_kl=3.0, schedule=schedule)
    model = model_of(torch.tensor([[2.0, 2.0]]).sqrt(), torch.zeros(1, 1, 2, 2))  # a KL divergence of 2 nats
    terms = {term: value.item() for term, value in objective(model, torch.zeros(1, 1, 2, 2), progress).items()}
    assert terms["target_kl"] == target
    assert terms["total"] == pytest.approx(terms["reconstruction"] + 100 * abs(2 - target))
    assert {*objective.units} == {*terms}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("objective=elbo objective.free_bits=-1", "objective.free_bits: must be at least 0, but is -1"),
        ("objective=elbo objective.warm_up=10", "objective.warm_up: must be a share of the training, greater than 0"),
        ("objective=elbo objective.warm_up=0", "objective.warm_up: must be a share of the training, greater than 0"),
        ("objective=elbo objective.warm_up=.5", "objective: warm_up is 0.5, but schedule=constant has none; take"),
        ("objective=elbo objective.schedule=linear objective.cycles=2", "objective: cycles is 2, but schedule=linear"),
        ("objective=elbo objective.schedule=cosine", "objective.schedule: must be 'constant', 'linear' or 'cyclical'"),
        ("objective=elbo objective.target_kl=9 objective.free_bits=1", "objective: target_kl is 9.0 and free_bits"),
        ("objective=elbo objective.target_kl=9 objective.schedule=cyclical", "objective: target_kl grows once, but"),
        ("objective=elbo objective.target_kl=-9", "objective.target_kl: must be at least 0"),
        ("objective=elbo objective.perceptual=1 data=mnist", "objective.perceptual: is for Fashion-MNIST, which"),
        ("objective=iwae objective.k=0", "objective.k: must be at least 1, but is 0"),
        ("objective=iwae objective.estimator=vimco", "objective.estimator: must be 'iwae' or 'dreg'"),
        ("objective=iwae posterior=point", "posterior: vae_lab.PointPosterior has no density, which the objective vae"),
        ("objective=beta_tc objective.beta=-1", "objective.beta: must be at least 0"),
        ("objective=beta_tc posterior=full", "objective: beta_tc needs a posterior that is a product over the latent"),
        ("objective=beta_tc prior=vamp", "objective: beta_tc needs a prior that is a product over the latent"),
        ("objective=dip objective.type=iii", "objective.type: must be 'i' or 'ii'"),
        ("objective=dip posterior=flow", "objective: type=ii needs the variance of the posteriors, which FlowPost"),
        ("objective=mmd objective.kernel=linear", "objective.kernel: must be 'imq' or 'rbf'"),
        ("objective=mmd objective.bandwidth=0", "objective.bandwidth: must be greater than 0"),
        ("objective=mmd prior=mixture", "objective: beta is 0, so that nothing trains MixturePrior, whose draws have"),
        ("objective=mmd posterior=point objective.beta=1", "objective: beta is 1.0, but PointPosterior has no KL"),
        ("objective=rae", "objective: rae has no KL term, so that nothing keeps the noise of DiagonalPosterior from"),
        ("objective=rae posterior=point objective.regularizer=l1", "objective.regularizer: must be 'none', 'gradi"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(run_of: Compose, words: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised, shapes_only():
        parts.check(run_of(*words.split()).config)
    assert str(raised.value).startswith(sentence)
    assert len(raised.value.problems) == 1


# --- Importance weights ------------------------------------------------------------------------------------

WEIGHTS, VARIANCE = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64), 0.5


def linear_gaussian(shift: float = 0.0) -> VAE:
    """x = w·z + σ·ε, with the exact posterior, or one whose parameters are shifted."""
    precision = 1 + (WEIGHTS @ WEIGHTS / VARIANCE).item()
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(1, 4, bias=False).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.stack([WEIGHTS / VARIANCE / precision, torch.zeros(4)]))
        encoder.bias.copy_(torch.tensor([shift, shift - math.log(precision)]))
        decoder.weight.copy_(WEIGHTS[:, None])
    return VAE(
        nn.Sequential(nn.Flatten(), encoder),
        DiagonalPosterior([1]),
        StandardPrior([1]),
        nn.Sequential(decoder, nn.Unflatten(1, (1, 2, 2))),
        GaussianLikelihood([1, 2, 2], sigma=VARIANCE**0.5, link="identity"),
        [1, 2, 2],
    ).double()


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_the_importance_weighted_bound_of_the_exact_posterior_is_the_likelihood(estimator: Any) -> None:
    images = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = torch.outer(WEIGHTS, WEIGHTS) + VARIANCE * torch.eye(4, dtype=torch.float64)
    exact = MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(images.flatten(1)).mean()
    assert values(Iwae(k=3, estimator=estimator), linear_gaussian(), images)["total"] == pytest.approx(
        -exact.item(), abs=1e-6
    )
    # With another posterior the bound is below it, and rises with k; the terms give the bound of one sample.
    model, many = linear_gaussian(shift=0.7), images.repeat(400, 1, 1, 1)
    with drawn_from(torch.Generator().manual_seed(1)):
        terms = {k: values(Iwae(k=k, estimator=estimator), model, many) for k in (1, 10, 100)}
    bounds = [-terms[k]["total"] for k in (1, 10, 100)]
    assert bounds[0] + 0.01 < bounds[1] < bounds[2] < exact
    for one in terms.values():
        assert Iwae().elbo(one, model) == pytest.approx(bounds[0], abs=0.05)


class Stretched(Posterior):
    """A normal distribution with a weight of its own for each image, which its density uses when it is asked for."""

    def __init__(self, latent_shape: list[int]) -> None:
        super().__init__(latent_shape)
        self.stretch = nn.Parameter(torch.full((DRAWS, 1), 1.3))

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        return 2 * latent_shape[0]

    def forward(self, parameters: Tensor) -> Distribution:
        return StretchedNormal(self, *parameters.chunk(2, dim=1))


class StretchedNormal(Distribution):
    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, module: Stretched, mean: Tensor, log_scale: Tensor) -> None:
        self.module, self.base = module, Normal(mean, log_scale.exp())
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(sample_shape) * self.module.stretch

    def log_prob(self, value: Tensor) -> Tensor:
        stretch = self.module.stretch
        return (self.base.log_prob(value / stretch) - stretch.log()).sum(-1)


DRAWS = 2000


@pytest.mark.parametrize("posterior", [DiagonalPosterior, Stretched])
def test_the_doubly_reparameterised_gradient_is_that_of_the_bound_with_less_variance(
    posterior: type[Posterior],
) -> None:
    """Tucker et al. 2019: for weights of the posterior the same expectation, and less variance at k = 64.

    A batch has one image many times, each with parameters of its own, so that each has a draw of their gradient.
    """
    image = torch.tensor([0.4, -0.3, 0.9, 0.1]).reshape(1, 1, 2, 2)
    linear = linear_gaussian(shift=0.4).float()
    rows = linear.encoder(image).detach().expand(DRAWS, 2)
    model = VAE(
        Constant(rows.clone()), posterior([1]), StandardPrior([1]), linear.decoder, linear.likelihood, [1, 2, 2]
    )
    of_posterior = [model.encoder.rows, *model.posterior.parameters()]
    draws, of_decoder = {}, {}
    for estimator in ("iwae", "dreg"):
        with drawn_from(torch.Generator().manual_seed(0)):
            total = Iwae(k=64, estimator=estimator)(model, image.expand(DRAWS, 1, 2, 2), 0.0)["total"]  # type: ignore[arg-type]
        total.backward()
        draws[estimator] = DRAWS * torch.cat([weight.grad for weight in of_posterior], 1)
        of_decoder[estimator] = [weight.grad for weight in linear.decoder.parameters()]
        model.zero_grad()
    difference = draws["iwae"] - draws["dreg"]
    assert (difference.mean(0).abs() < 4 * difference.std(0) / DRAWS**0.5).all()
    assert (draws["dreg"].mean(0).abs() > 20 * draws["dreg"].std(0) / DRAWS**0.5).all()
    assert (draws["dreg"].var(0) < 0.5 * draws["iwae"].var(0)).all()
    torch.testing.assert_close(of_decoder["dreg"], of_decoder["iwae"])


def test_the_posterior_is_detached_for_the_gradient_only(run_of: Compose) -> None:
    model, images = model_of(torch.randn(6, 3), torch.rand(48, 1, 4, 5)), torch.rand(6, 1, 4, 5)
    model.decoder = nn.Sequential(nn.Linear(3, 20), nn.Unflatten(1, (1, 4, 5)))
    found = []
    for estimator in ("iwae", "dreg"):
        with drawn_from(torch.Generator().manual_seed(0)):
            found.append(values(Iwae(k=8, estimator=estimator), model, images))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# --- Total correlation -------------------------------------------------------------------------------------


def posteriors_of_gaussian(covariance: Tensor, count: int, variance: float, seed: int = 0) -> DiagonalNormal:
    """Posteriors of one variance whose mean over the images is N(0, covariance)."""
    torch.manual_seed(seed)
    of_means = covariance - variance * torch.eye(len(covariance))
    means = MultivariateNormal(torch.zeros(len(covariance)), of_means).sample((count,))
    return DiagonalNormal(means, torch.full_like(means, math.log(variance)))


def test_the_total_correlation_of_a_gaussian_with_known_covariance() -> None:
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    q = posteriors_of_gaussian(covariance, 4096, 0.1)
    z = q.rsample()
    found = decompose(q, StandardNormal(torch.zeros(2)), z, log_weights(4096, 4096, "stratified"))
    assert found.total_correlation.item() == pytest.approx(-0.5 * math.log(1 - 0.8**2), rel=0.05)
    # The other parts have closed forms too: ½ ln |C| / |Σ|, and the divergences of N(0, 1) from itself.
    information = 0.5 * torch.logdet(covariance).item() - math.log(0.1)
    assert found.mutual_information.item() == pytest.approx(information, rel=0.05)
    assert found.dimension_wise_kl.item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("sampling", ["stratified", "weighted"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_three_parts_are_the_divergence(sampling: Any, batch: int) -> None:
    q, p = posteriors_of_gaussian(torch.eye(3), batch, 0.2), StandardNormal(torch.zeros(3))
    z = q.rsample()
    parts = decompose(q, p, z, log_weights(batch, 50, sampling))
    assert sum(parts).item() == pytest.approx((q.log_prob(z) - p.log_prob(z)).mean().item(), abs=1e-4)
    objective = BetaTc(num_train=50, sampling=sampling, alpha=0.5, beta=2.0, gamma=3.0)
    model = model_of(torch.randn(batch, 3), torch.rand(batch, 1, 2, 2))
    terms = values(objective, model, torch.rand(batch, 1, 2, 2))
    weighted = 0.5 * terms["mutual_information"] + 2 * terms["total_correlation"] + 3 * terms["dimension_wise_kl"]
    assert terms["total"] == pytest.approx(terms["reconstruction"] + weighted, rel=1e-5)


def test_the_mean_of_all_posteriors_is_estimated_without_bias() -> None:
    """Over all batches that hold an image, the mean estimate of q(z) is q(z)."""
    q = posteriors_of_gaussian(torch.eye(2), 5, 0.3)
    density = q.log_prob(q.rsample()[0]).exp()  # of one z under each posterior; the first is its own
    weights = log_weights(3, 5, "stratified").exp()[0]
    estimates = [weights @ density[[0, *others]] for others in itertools.combinations(range(1, 5), 2)]
    assert torch.stack(estimates).mean().item() == pytest.approx(density.mean().item(), rel=1e-5)


# --- Covariance and MMD ------------------------------------------------------------------------------------


def test_the_covariance_of_codes_by_hand() -> None:
    means = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(50, 1, 2, 2)
    model = model_of(means, torch.rand(50, 1, 2, 2))  # posteriors of variance 1
    expected = torch.cov(means.T, correction=0)
    for kind, covariance in (("i", expected), ("ii", expected + torch.eye(3))):
        terms = values(Dip(type=kind, off_diagonal=2.0, diagonal=3.0, beta=0.5), model, images)  # type: ignore[arg-type]
        off_diagonal = covariance - covariance.diagonal().diag()
        assert terms["off_diagonal"] == pytest.approx(off_diagonal.square().sum().item(), rel=1e-4)
        assert terms["diagonal"] == pytest.approx((covariance.diagonal() - 1).square().sum().item(), rel=1e-4)
        penalty = 0.5 * terms["kl"] + 2 * terms["off_diagonal"] + 3 * terms["diagonal"]
        assert terms["total"] == pytest.approx(terms["reconstruction"] + penalty, rel=1e-5)


def test_the_covariance_of_posteriors_that_have_a_matrix_is_that_matrix() -> None:
    q = MultivariateNormal(torch.randn(4, 3), torch.eye(3) + 0.5)
    torch.testing.assert_close(mean_covariance(q), torch.eye(3) + 0.5)


def mean_kernel(kernel: str, bandwidth: float, shift: float, variance: float, dim: int) -> float:
    """The expected kernel of x − y ~ N(shift, variance · 1); C / (C + d²) is ∫ exp(−t (1 + d²/C)) dt."""

    def gaussian(scale: float) -> float:  # E exp(−d² / scale)
        return float((1 + 2 * variance / scale) ** (-dim / 2) * math.exp(-dim * shift**2 / (scale + 2 * variance)))

    if kernel == "rbf":
        return gaussian(bandwidth)
    of_scales = [quad(lambda t, c=s * bandwidth: math.exp(-t) * gaussian(c / t), 1e-12, 60)[0] for s in SCALES]
    return sum(of_scales) / len(SCALES)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.3), (0.0, 2.0)])
def test_the_mmd_of_two_gaussians_against_its_closed_form(kernel: Any, shift: float, scale: float) -> None:
    dim, bandwidth = 3, 6.0
    expected = (
        mean_kernel(kernel, bandwidth, 0, 2 * scale**2, dim)
        + mean_kernel(kernel, bandwidth, 0, 2, dim)
        - 2 * mean_kernel(kernel, bandwidth, shift, 1 + scale**2, dim)
    )
    torch.manual_seed(0)
    found = torch.stack(
        [squared_mmd(shift + scale * torch.randn(16, dim), torch.randn(16, dim), kernel, bandwidth) for _ in range(400)]
    )
    error = (found.std() / 20).item()
    assert found.mean().item() == pytest.approx(expected, abs=4 * error)  # without bias
    if shift or scale != 1:
        assert expected > 10 * error


@pytest.mark.parametrize("batch", [1, 2])
def test_terms_of_the_smallest_batches_are_finite(batch: int) -> None:
    model = model_of(torch.randn(batch, 3), torch.rand(batch, 1, 2, 2))
    for objective in (Mmd(), Dip(), BetaTc(num_train=1), Iwae(k=1), Elbo(free_bits=0.1)):
        assert all(math.isfinite(value) for value in values(objective, model, torch.rand(batch, 1, 2, 2)).values())


def test_the_mmd_weighs_in_the_total() -> None:
    torch.manual_seed(0)
    model = model_of(torch.randn(40, 3), torch.rand(40, 1, 2, 2))
    terms = values(Mmd(beta=0.5, mmd_weight=7.0), model, torch.rand(40, 1, 2, 2))
    assert terms["total"] == pytest.approx(terms["reconstruction"] + 0.5 * terms["kl"] + 7 * terms["mmd"], rel=1e-5)


# --- Without noise -----------------------------------------------------------------------------------------


def point_model(decoder: nn.Module, codes: Tensor) -> VAE:
    likelihood = GaussianLikelihood([1, 2, 2], sigma=1.0, link="identity")
    return VAE(Constant(codes), PointPosterior([3]), StandardPrior([3]), decoder, likelihood, [1, 2, 2])


@pytest.mark.parametrize("regularizer", ["none", "gradient", "l2", "spectral"])
def test_the_terms_of_a_regularised_autoencoder_by_hand(regularizer: Any) -> None:
    torch.manual_seed(0)
    layer, codes, images = nn.Linear(3, 4), torch.randn(20_000, 3), torch.rand(20_000, 1, 2, 2)
    model = point_model(nn.Sequential(layer, nn.Unflatten(1, (1, 2, 2))), codes)
    objective = Rae(beta=0.5, regularizer=regularizer, regularizer_weight=3.0)
    objective.check(model)
    terms = values(objective, model, images)
    assert "kl" not in terms
    assert terms["latent_norm"] == pytest.approx(0.5 * codes.square().sum(1).mean().item(), rel=1e-5)
    squared = layer.weight.square().sum().item()
    expected = {
        "none": 0.0,
        "gradient": 0.5 * squared,
        "l2": 0.5 * (squared + layer.bias.square().sum().item()),
        "spectral": 0.5 * torch.linalg.matrix_norm(layer.weight, 2).item() ** 2,
    }[regularizer]
    assert terms["regularizer"] == pytest.approx(expected, rel=0.05 if regularizer == "gradient" else 0.01)
    in_total = terms["reconstruction"] + 0.5 * terms["latent_norm"] + 3 * terms["regularizer"]
    assert terms["total"] == pytest.approx(in_total, rel=1e-5)


def test_the_decoders_jacobian_is_penalised_in_training_and_measured_without_gradients() -> None:
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Unflatten(1, (1, 2, 2)))
    model, images = point_model(decoder, torch.randn(5, 3)), torch.rand(5, 1, 2, 2)
    objective = Rae(beta=0.0, regularizer="gradient", regularizer_weight=1.0)
    with torch.inference_mode(), drawn_from(torch.Generator().manual_seed(0)):
        measured = values(objective, model, images)
    with drawn_from(torch.Generator().manual_seed(0)):
        terms = objective(model, images, 0.0)
    assert measured["regularizer"] == pytest.approx(terms["regularizer"].item(), rel=1e-5)
    terms["regularizer"].backward()
    assert all(weight.grad is not None for weight in (model.encoder.rows, decoder[0].weight))


# --- Features ----------------------------------------------------------------------------------------------


def test_reconstructions_are_compared_in_the_features_of_the_classifier(run_of: Compose) -> None:
    settings = run_of("objective=elbo", "objective.perceptual=2", "latent.dim=4", "encoder=mlp", "decoder=mlp").config
    objective, model, images = config.build(settings.objective), vae.build(settings), torch.rand(4, 1, 28, 28)
    with torch.inference_mode():  # as in a validation, before the first step of training
        objective(model, images, 0.0)
    terms = objective(model, images, 0.0)
    expected = terms["reconstruction"] + terms["kl"] + 2 * terms["perceptual"]
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert squared_feature_distance(images, images) == 0
    classifier = load_classifier()
    with torch.no_grad():
        distance = (classifier.features(images) - classifier.features(images / 2)).square().sum(1).mean()
    torch.testing.assert_close(squared_feature_distance(images / 2, images), distance)
    terms["perceptual"].backward()
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    assert not [*objective.parameters()]


# --- Every objective ---------------------------------------------------------------------------------------

CHOICES = {name: [f"objective={name}"] for name in shipped_choices("objective")} | {
    "annealed": ["objective=elbo", "objective.schedule=cyclical", "objective.free_bits=0.01"],
    "target": ["objective=elbo", "objective.target_kl=5", "objective.schedule=linear", "objective.perceptual=1"],
    "iwae": ["objective=iwae", "objective.k=3"],
    "dip_i": ["objective=dip", "objective.type=i", "objective.diagonal=100"],
    "wae": ["objective=mmd", "objective.kernel=rbf", "posterior=point"],
    "rae": ["objective=rae", "posterior=point"],
    "rae_gradient": ["objective=rae", "objective.regularizer=gradient", "posterior=point"],
    "rae_spectral": ["objective=rae", "objective.regularizer=spectral", "posterior=point"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_term_has_a_unit_and_is_one_number(run_of: Compose, name: str) -> None:
    settings = run_of(*CHOICES[name], "latent.dim=4", "encoder=mlp", "decoder=mlp").config
    objective = config.build(settings.objective)
    losses = objective(vae.build(settings), torch.rand(4, 1, 28, 28), 0.5)
    assert {*losses} | {"kl"} >= {*TERMS}
    assert all(objective.units[term] for term in losses)
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    losses["total"].backward()


SMALL = (
    "data.num_train=60", "data.num_val=20", "data.num_test=20", "data.batch_size=20", "trainer.max_epochs=2",
    "trainer.threads=1", "encoder.blocks=[{down:4}]", "latent.dim=4", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]",
    "callbacks=quiet", "metrics.frechet=false",
)  # fmt: skip


@pytest.mark.parametrize("name", ["annealed", "target", "iwae", "beta_tc", "dip", "wae", "rae_gradient"])
def test_every_objective_trains_in_mixed_precision_and_its_terms_are_in_every_file(run_of: Compose, name: str) -> None:
    run = run_of(*CHOICES[name], *SMALL, "trainer.precision=bf16-mixed", "name=trained")
    runner.check(run.config)
    result = runner.run(run)
    assert result.finished, result.error
    history, test = results.read_history(run.directory), result.test.model_dump()
    has_density = "posterior=point" not in CHOICES[name]
    for term in result.terms:
        assert len(history["val"][term]) == 2
        assert term == "kl" or math.isfinite(test[term])
    assert has_density == (test["kl"] is not None) == (result.nats == "real") == (test["elbo"] is not None)
    if has_density:
        assert test["elbo"] == pytest.approx(-test["reconstruction"] - test["kl"])
        assert validation_bound(run.config, result.val.model_dump()) is not None
    assert {*prepare([run.directory.parents[1]]).study.terms} >= {*result.terms} - {"kl"}


def test_a_schedule_resumes_where_it_was(run_of: Compose) -> None:
    words = ("objective=elbo", "objective.schedule=linear", "objective.warm_up=1", *SMALL)
    whole, run = run_of(*words, "name=whole"), run_of(*words, "name=killed")
    first, result = check_resuming(whole, run)
    assert result.test == first.test
    history = results.read_history(run.directory)
    assert history["train"]["beta"] == pytest.approx([1 / 6, 4 / 6], rel=1e-5)
    assert history["val"]["beta"] == [1, 1]


def test_keys_of_elbo_at_their_defaults_change_no_checksum(run_of: Compose) -> None:
    identity = run_of("objective=elbo").config.identity()
    assert {key for key in identity if key.startswith("objective")} == {"objective._target_", "objective.beta"}
    assert run_of("objective=elbo", "objective.free_bits=1").config.sha256() != run_of("objective=elbo").config.sha256()
