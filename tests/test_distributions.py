"""Densities, divergences and random streams against torch.distributions and by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Laplace, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy

from vae_lab.data.shards import Part
from vae_lab.model.distributions import DiagonalNormal, StandardNormal, by_dimension, divergence
from vae_lab.model.likelihoods.bernoulli import BernoulliLikelihood
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.randomness import drawn_from


def diagonal(*batch: int, z: int = 5, seed: int = 0) -> DiagonalNormal:
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = (torch.randn(*batch, z, dtype=torch.float64, generator=generator) for _ in range(2))
    return DiagonalNormal(mean, log_variance)


def by_torch(q: DiagonalNormal) -> Independent:
    """The same distribution, from torch's own classes."""
    return Independent(Normal(q.mean, q.variance.sqrt()), 1)


def standard(*shape: int) -> StandardNormal:
    return StandardNormal(torch.zeros(shape, dtype=torch.float64))


# --- Densities and moments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)], ids=str)
def test_a_diagonal_normal_is_torchs(batch: tuple[int, ...]) -> None:
    q = diagonal(*batch)
    expected = by_torch(q)
    assert (q.batch_shape, q.event_shape) == (expected.batch_shape, expected.event_shape)
    z = torch.randn(4, *batch, 5, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(q.entropy(), expected.entropy())
    for moment in ("mean", "variance", "stddev"):
        torch.testing.assert_close(getattr(q, moment), getattr(expected, moment))
    assert q.rsample((4, 2)).shape == (4, 2, *batch, 5)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)], ids=str)
def test_a_standard_normal_is_torchs(shape: tuple[int, ...]) -> None:
    p = standard(*shape)
    expected = Independent(Normal(p.mean, p.variance), len(shape))
    assert (p.batch_shape, p.event_shape) == (expected.batch_shape, expected.event_shape)
    z = torch.randn(7, *shape, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(z), expected.log_prob(z))
    assert p.sample((4, 2)).shape == (4, 2, *shape)


def test_samples_have_the_moments_of_the_posterior() -> None:
    torch.manual_seed(0)
    z = DiagonalNormal(torch.full((200_000, 1), 2.0), torch.full((200_000, 1), 0.5)).rsample()
    assert abs(z.mean().item() - 2) < 0.01
    assert abs(z.var().item() - torch.tensor(0.5).exp().item()) < 0.02


def test_gradients_go_through_samples_of_the_posterior() -> None:
    parameters = torch.randn(3, 4, requires_grad=True)
    DiagonalPosterior([2])(parameters).rsample().sum().backward()
    assert parameters.grad is not None
    assert torch.equal(parameters.grad[:, :2], torch.ones(3, 2))
    assert (parameters.grad[:, 2:] != 0).all()


@pytest.mark.parametrize(("log_variance", "bounds", "expected"), [
    (1e4, (-30.0, 20.0), 20.0), (-1e4, (-30.0, 20.0), -30.0), (-3.3, (-30.0, 20.0), -3.3), (1.7, (-1.0, 1.0), 1.0),
    (1e4, None, 1e4),
])  # fmt: skip
def test_a_log_variance_is_bounded_but_not_its_gradient(
    log_variance: float, bounds: tuple[float, float] | None, expected: float
) -> None:
    parameters = torch.tensor([[0.5, log_variance]], requires_grad=True)
    q = DiagonalPosterior([1], log_variance=bounds)(parameters)
    assert q.log_variance.item() == torch.tensor(expected).item()
    if bounds is not None:
        kl = kl_divergence(q, StandardPrior([1])()).sum()
        kl.backward()
        assert kl.isfinite()
        assert parameters.grad is not None
        assert parameters.grad[0, 1].sign() == torch.tensor(log_variance).sign()  # back towards the prior


def test_half_precision_ends_before_the_arithmetic() -> None:
    posterior = DiagonalPosterior([3])
    q = posterior(torch.randn(2, posterior.num_parameters((3,)), dtype=torch.bfloat16))
    assert q.rsample().dtype == kl_divergence(q, StandardPrior([3])()).dtype == torch.float32
    for likelihood in (GaussianLikelihood([1, 2, 2], sigma=0.5), BernoulliLikelihood([1, 2, 2])):
        x = likelihood(torch.randn(2, 1, 2, 2, dtype=torch.bfloat16))
        assert x.mean.dtype == x.log_prob(torch.zeros(2, 1, 2, 2)).dtype == torch.float32


# --- KL divergences ----------------------------------------------------------------------------------------


def test_kl_from_the_prior_is_that_of_torch() -> None:
    q, p = diagonal(7), standard(5)
    expected = kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 1.0))
    torch.testing.assert_close(by_dimension(q, p), expected)
    torch.testing.assert_close(kl_divergence(q, p), expected.sum(1))


def test_kl_of_two_diagonal_normals_is_that_of_torch() -> None:
    q, p = diagonal(7), diagonal(7, seed=1)
    torch.testing.assert_close(by_dimension(q, p), kl_divergence(Normal(q.mean, q.stddev), Normal(p.mean, p.stddev)))
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(by_torch(q), by_torch(p)))


def test_kl_is_zero_at_the_prior_and_known_by_hand() -> None:
    def kl(mean: float, log_variance: float) -> float:
        return kl_divergence(DiagonalNormal(torch.tensor([[mean]]), torch.tensor([[log_variance]])), prior).item()

    prior = StandardPrior([1])()
    assert kl(0.0, 0.0) == 0
    # mean 1, variance 1: ½; mean 0, variance e: ½(e - 2)
    assert kl(1.0, 0.0) == 0.5
    assert kl(0.0, 1.0) == pytest.approx(0.3591409142)


def test_a_pair_with_a_rule_has_the_exact_divergence() -> None:
    q, p = diagonal(7), standard(5)
    found = divergence(q, p, q.sample())
    assert found.is_exact
    assert torch.equal(found.nats, kl_divergence(q, p))


@pytest.mark.parametrize(
    "p", [by_torch(diagonal(seed=1)), Independent(Laplace(torch.zeros(5), torch.ones(5)), 1)], ids=["normal", "laplace"]
)
def test_a_pair_without_a_rule_has_a_one_sample_estimate_and_says_so(p: Distribution) -> None:
    q = diagonal(7)
    z = q.sample()
    found = divergence(q, p, z)
    assert not found.is_exact
    torch.testing.assert_close(found.nats, by_torch(q).log_prob(z) - p.log_prob(z))
    assert by_dimension(q, p) is None


def test_the_estimate_is_right_on_average() -> None:
    torch.manual_seed(0)
    q, p = diagonal(z=2), diagonal(z=2, seed=1)
    many = DiagonalNormal(q.mean.expand(100_000, 2), q.log_variance.expand(100_000, 2))
    estimate = divergence(many, by_torch(p), many.sample())
    assert not estimate.is_exact
    assert estimate.nats.mean().item() == pytest.approx(kl_divergence(q, p).item(), rel=0.02)


# --- Likelihoods -------------------------------------------------------------------------------------------


def test_a_bernoulli_likelihood_is_the_negative_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    images = torch.randint(2, logits.shape).double()
    x = BernoulliLikelihood([3, 5, 6])(logits)
    expected = binary_cross_entropy(torch.sigmoid(logits), images, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(x.log_prob(images), -expected)
    torch.testing.assert_close(x.mean, torch.sigmoid(logits))
    assert BernoulliLikelihood([3, 5, 6]).channels(3) == 3


@pytest.mark.parametrize("link", ["sigmoid", "identity"])
def test_a_gaussian_likelihood_is_torchs_normal(link: str) -> None:
    torch.manual_seed(0)
    parameters, images = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    x = GaussianLikelihood([3, 5, 6], sigma=0.3, link=link)(parameters)
    mean = torch.sigmoid(parameters) if link == "sigmoid" else parameters
    assert torch.equal(x.mean, mean)
    torch.testing.assert_close(x.log_prob(images), Normal(mean, 0.3).log_prob(images).sum((1, 2, 3)))


def test_a_learned_sigma_is_trained_and_others_are_not() -> None:
    learned = GaussianLikelihood([1, 2, 2], sigma="learned")
    assert [name for name, _ in learned.named_parameters()] == ["log_sigma"]
    images = torch.full((3, 1, 2, 2), 0.5)
    learned(torch.zeros(3, 1, 2, 2)).log_prob(images).sum().backward()
    # A pixel whose mean is right adds −ln σ, whose derivative by ln σ is −1.
    assert learned.log_sigma.grad.item() == pytest.approx(-12)
    for sigma in (0.5, None):
        assert not list(GaussianLikelihood([1, 2, 2], sigma=sigma).parameters())


# --- Random streams ----------------------------------------------------------------------------------------


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SHAPE, CHANCES = (6, 3), torch.rand(6, 3)


@pytest.mark.parametrize(
    ("within", "by_hand"),
    [
        (lambda: torch.randn(SHAPE), lambda one: torch.randn(SHAPE, generator=one)),
        (lambda: torch.randn(size=SHAPE), lambda one: torch.randn(SHAPE, generator=one)),
        (lambda: torch.rand(SHAPE), lambda one: torch.rand(SHAPE, generator=one)),
        (lambda: torch.randn_like(CHANCES), lambda one: torch.randn(SHAPE, generator=one)),
        (lambda: torch.rand_like(CHANCES), lambda one: torch.rand(SHAPE, generator=one)),
        (lambda: torch.empty(SHAPE).normal_(2, 3), lambda one: torch.empty(SHAPE).normal_(2, 3, generator=one)),
        (lambda: torch.empty(SHAPE).normal_(mean=2), lambda one: torch.empty(SHAPE).normal_(2, 1, generator=one)),
        (lambda: torch.empty(SHAPE).uniform_(1, 2), lambda one: torch.empty(SHAPE).uniform_(1, 2, generator=one)),
        (lambda: torch.empty(SHAPE).exponential_(), lambda one: torch.empty(SHAPE).exponential_(generator=one)),
        (lambda: torch.empty(SHAPE).cauchy_(1, 2), lambda one: torch.empty(SHAPE).cauchy_(1, 2, generator=one)),
        (lambda: torch.empty(SHAPE).log_normal_(), lambda one: torch.empty(SHAPE).log_normal_(generator=one)),
        (lambda: torch.empty(SHAPE).geometric_(0.3), lambda one: torch.empty(SHAPE).geometric_(0.3, generator=one)),
        (lambda: torch.poisson(CHANCES), lambda one: torch.poisson(CHANCES, generator=one)),
        (lambda: torch.normal(CHANCES, 2.0), lambda one: torch.normal(CHANCES, 2.0, generator=one)),
        (lambda: torch.bernoulli(CHANCES), lambda one: torch.bernoulli(CHANCES, generator=one)),
        (lambda: torch.multinomial(CHANCES, 2), lambda one: torch.multinomial(CHANCES, 2, generator=one)),
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_a_stream_gives_the_numbers_of_a_generator_that_is_passed_by_hand(
    within: Callable[[], Tensor],
    by_hand: Callable[[torch.Generator], Tensor],
    kind: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{__name__}.CHANCES", CHANCES.to(kind))
    torch.set_default_dtype(kind)
    before = torch.get_rng_state()
    try:
        with drawn_from(stream()):
            found = within()
        assert torch.equal(found, by_hand(stream()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own stream has no part in it


def test_a_generator_that_is_passed_inside_a_stream_is_used() -> None:
    with drawn_from(stream()):
        assert torch.equal(torch.randn(4, generator=stream(1)), torch.randn(4, generator=stream(1)))
        assert not torch.equal(torch.randn(4, generator=stream(1)), torch.randn(4))


@pytest.mark.parametrize(
    "distribution",
    [
        diagonal(6),
        by_torch(diagonal(6)),
        Independent(Laplace(torch.zeros(6, 5), torch.ones(6, 5)), 1),
        Normal(torch.zeros(6, 5), 2.0),
    ],
    ids=["ours", "normal", "laplace", "not joined"],
)
def test_a_distribution_is_drawn_from_a_stream_and_goes_on_with_it(distribution: Distribution) -> None:
    def twice(seed: int) -> Tensor:
        with drawn_from(stream(seed)):
            return torch.stack([distribution.sample(), distribution.sample()])

    assert torch.equal(twice(0), twice(0))
    assert not torch.equal(twice(0), twice(1))
    assert not torch.equal(*twice(0))


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("sample_shape", [(), (2,)], ids=str)
def test_rows_of_a_shared_batch_have_the_numbers_of_the_whole(processes: int, sample_shape: tuple[int, ...]) -> None:
    batch = 7

    def drawn(rows: slice, of: int | None = None) -> Tensor:
        whole = diagonal(batch)
        part = DiagonalNormal(whole.mean[rows], whole.log_variance[rows])
        with drawn_from(stream(), rows if of else None, of):
            ours, torchs = part.rsample(sample_shape), by_torch(part).rsample(sample_shape)
            return torch.cat([ours, torchs, torch.randn_like(ours)], -1)

    whole = drawn(slice(0, batch))
    parts = [drawn(Part(rank, processes).taken(batch), batch) for rank in range(processes)]
    assert torch.equal(torch.cat(parts, -2), whole)


def test_rows_are_those_of_the_batch_also_where_codes_are_maps() -> None:
    with drawn_from(stream()):
        whole = torch.randn(2, 6, 3, 4, 4)
    with drawn_from(stream(), slice(2, 5), 6, events=3):
        assert torch.equal(torch.randn(2, 3, 3, 4, 4), whole[:, 2:5])
