"""Held-out metrics against what is known: a linear model's exact likelihood, Gaussians, reference implementations."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from conftest import Compose
from lightning.pytorch import LightningDataModule
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace, MultivariateNormal, Normal, kl_divergence
from torch.utils.data import DataLoader, IterableDataset

from vae_lab import config, results
from vae_lab.config import MetricsConfig
from vae_lab.evaluation import latent_space, likelihood
from vae_lab.evaluation.batches import HeldOutBatches
from vae_lab.evaluation.latent_space import aggregate_bound, information_bound, probe_accuracy, use_of_latent
from vae_lab.evaluation.likelihood import importance_weighted
from vae_lab.evaluation.measure import kind_of_divergence, measure
from vae_lab.evaluation.pictures import ConstantChannels, FrechetDistance
from vae_lab.evaluation.symptoms import symptoms
from vae_lab.model import classifier, vae
from vae_lab.model.classifier import ClassifierError, load_classifier
from vae_lab.model.distributions import DiagonalNormal
from vae_lab.model.interfaces import Likelihood, Posterior
from vae_lab.model.likelihoods.bernoulli import BernoulliLikelihood
from vae_lab.model.likelihoods.continuous_bernoulli import ContinuousBernoulliLikelihood
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective
from vae_lab.objectives.elbo import Elbo
from vae_lab.objectives.mse_kl import MseKl

SHAPE = (1, 2, 3)
PIXELS, DIM, VARIANCE = 6, 2, 0.3
FULL = MetricsConfig(iwae=[1, 10, 100], probe=True, samplers=True)
OBJECTIVE = MseKl(beta=0.01)


def model_of(
    encoder: nn.Module, decoder: nn.Module, dim: int = DIM, likelihood: Likelihood | None = None, shape: Any = SHAPE
) -> VAE:
    """A model of these halves, under a Gaussian of σ = 1 unless another likelihood is given."""
    likelihood = likelihood or GaussianLikelihood(shape, sigma=1.0, link="identity")
    return VAE(encoder, DiagonalPosterior([dim]), StandardPrior([dim]), decoder, likelihood, shape)


# --- Likelihood --------------------------------------------------------------------------------------------


class Linear:
    """Probabilistic PCA (Tipping & Bishop 1999): x = W·z + b + σ·ε, with orthogonal columns of W.

    Its exact posterior is a Gaussian of diagonal covariance, so that a VAE can have it.
    """

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        orthogonal = torch.linalg.qr(torch.randn(PIXELS, DIM, generator=generator, dtype=torch.float64)).Q
        self.weights = orthogonal * torch.tensor([1.0, 0.6]) * scale
        self.offset = torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.generator = generator

    def images(self, count: int) -> Tensor:
        z, noise = (torch.randn(count, size, generator=self.generator, dtype=torch.float64) for size in (DIM, PIXELS))
        return (z @ self.weights.T + self.offset + math.sqrt(VARIANCE) * noise).reshape(count, *SHAPE)

    def log_likelihood(self, images: Tensor) -> Tensor:
        covariance = self.weights @ self.weights.T + VARIANCE * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.offset, covariance).log_prob(images.flatten(1))

    def vae(self, shift: float = 0.0, widen: float = 0.0) -> VAE:
        """With the exact posterior, or one whose mean is shifted and whose log-variance is raised."""
        precision = (self.weights.T @ self.weights / VARIANCE + torch.eye(DIM, dtype=torch.float64)).diagonal()
        onto_z = (self.weights / VARIANCE / precision).T
        encoder = nn.Linear(PIXELS, 2 * DIM).double()
        decoder = nn.Linear(DIM, PIXELS).double()
        with torch.no_grad():
            encoder.weight.copy_(torch.cat([onto_z, torch.zeros_like(onto_z)]))
            encoder.bias.copy_(torch.cat([shift - onto_z @ self.offset, widen - precision.log()]))
            decoder.weight.copy_(self.weights)
            decoder.bias.copy_(self.offset)
        likelihood = GaussianLikelihood(SHAPE, sigma=math.sqrt(VARIANCE), link="identity")
        return model_of(
            nn.Sequential(nn.Flatten(), encoder),
            nn.Sequential(decoder, nn.Unflatten(1, SHAPE)),
            likelihood=likelihood,
        ).double()


def bounds(model: VAE, images: Tensor, counts: list[int]) -> list[float]:
    with torch.no_grad():
        found = importance_weighted(model, images, counts, torch.Generator().manual_seed(1))
    return [found[f"iwae_{k}"].mean().item() for k in counts]


def elbo_of(model: VAE, images: Tensor, objective: Objective | None = None) -> float:
    """The bound from the mean losses, as a test measures them."""
    objective = objective or MseKl(beta=2 * DIM * VARIANCE / PIXELS)
    with torch.no_grad():
        losses = {term: value.item() for term, value in objective(model, images, 1.0).items()}
    elbo = objective.elbo(losses, model)
    assert elbo is not None
    return elbo


def test_with_the_exact_posterior_every_bound_is_the_likelihood() -> None:
    linear = Linear()
    images = linear.images(500)
    exact = linear.log_likelihood(images).mean().item()
    assert bounds(linear.vae(), images, [1, 10, 100]) == pytest.approx([exact] * 3, abs=1e-3)


def test_the_bound_from_the_losses_is_the_likelihood_too() -> None:
    torch.manual_seed(0)
    linear = Linear(scale=0.2)  # little spread over z, so that few samples give the mean to 1e-3 nats
    images = linear.images(1000)
    exact = linear.log_likelihood(images).mean().item()
    for objective in (None, Elbo(beta=0.5)):
        assert elbo_of(linear.vae(), images.repeat(1000, 1, 1, 1), objective) == pytest.approx(exact, abs=1e-3)


def test_the_bounds_rise_with_the_samples_and_stay_below_the_likelihood() -> None:
    torch.manual_seed(0)
    linear = Linear()
    images = linear.images(2000)
    exact = linear.log_likelihood(images).mean().item()
    model = linear.vae(shift=0.5, widen=1.0)
    loose, ten, hundred = elbo_of(model, images), *bounds(model, images, [10, 100])
    assert loose + 0.1 < ten < hundred < exact
    assert hundred == pytest.approx(exact, abs=0.05)


def test_a_bound_of_one_sample_is_that_of_the_losses() -> None:
    torch.manual_seed(0)
    linear = Linear()
    images = linear.images(1000).repeat(50, 1, 1, 1)
    model = linear.vae(shift=0.5, widen=1.0)
    assert bounds(model, images, [1])[0] == pytest.approx(elbo_of(model, images), abs=0.05)


def test_of_binary_images_that_the_code_says_nothing_about_every_bound_is_the_cross_entropy() -> None:
    """The posterior is the prior, and the decoder ignores z."""
    torch.manual_seed(0)
    images = torch.randint(2, (20, *SHAPE)).float()
    decoder = nn.Sequential(nn.Linear(DIM, PIXELS), nn.Unflatten(1, SHAPE))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM))
    for weights in (*encoder.parameters(), decoder[0].weight):
        nn.init.zeros_(weights)
    model = model_of(encoder, decoder, likelihood=BernoulliLikelihood(SHAPE))
    logits = decoder[0].bias.detach().reshape(SHAPE).expand(20, *SHAPE)
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum").item() / 20
    assert bounds(model, images, [1, 10]) == pytest.approx([expected] * 2, rel=1e-5)


def test_elbo_is_the_total_in_nats() -> None:
    beta, dim, pixels = 0.01, 256, 784
    losses = {"reconstruction": 0.012, "kl": 0.42}
    model = model_of(nn.Identity(), nn.Identity(), dim, shape=(1, 28, 28))
    variance = config.likelihood_variance(beta, [1, 28, 28], dim)
    assert math.sqrt(variance) == pytest.approx(0.124, abs=5e-4)
    total = losses["reconstruction"] + beta * losses["kl"]
    constant = -pixels / 2 * math.log(2 * math.pi * variance)
    assert MseKl(beta=beta).elbo(losses, model) == pytest.approx(constant - dim / beta * total, rel=1e-12)


class Counting(nn.Module):
    """Remembers how many images were asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        return torch.zeros(len(z), *SHAPE)


def test_bounds_decode_a_limited_number_of_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "AT_ONCE", 3 * 7 * PIXELS + 1)
    decoder = Counting()
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM)), decoder)
    with torch.no_grad():
        importance_weighted(model, torch.rand(7, *SHAPE), [1, 50], torch.Generator())
    assert decoder.sizes == [21] * 16 + [14]


def test_interrupted_bounds_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM)), nn.Linear(DIM, PIXELS))
    model.decoder = nn.Sequential(model.decoder, nn.Unflatten(1, SHAPE))
    test = HeldOutBatches(LightningDataModule(), [torch.rand(5, *SHAPE) for _ in range(4)], torch.empty(0))
    monkeypatch.setattr(likelihood, "KEEP_EVERY", 0.0)
    whole = likelihood.bounds(model, test, [1, 10], tmp_path)
    once, measured = importance_weighted, list[int]()

    def measure_until(last: int) -> None:
        def limited(*arguments: Any, **further: Any) -> dict[str, Tensor]:
            measured.append(len(measured))
            if len(measured) == last:
                raise KeyboardInterrupt
            return once(*arguments, **further)

        monkeypatch.setattr(likelihood, "importance_weighted", limited)

    measure_until(3)
    with pytest.raises(KeyboardInterrupt):
        likelihood.bounds(model, test, [1, 10], tmp_path)
    kept = (tmp_path / results.BOUNDS).read_text()
    measure_until(0)
    assert likelihood.bounds(model, test, [1, 10], tmp_path) == whole
    assert len(measured) == 3 + 2
    assert not (tmp_path / results.BOUNDS).exists()
    short = json.dumps(json.loads(kept) | {"batches": [{"iwae_1": [0.0], "iwae_10": [0.0]}] * 2})
    for damaged in (kept[:-9], kept.replace(",10]", ",11]"), "[]", short):  # also those of other numbers of samples
        (tmp_path / results.BOUNDS).write_text(damaged)
        measured.clear()
        assert likelihood.bounds(model, test, [1, 10], tmp_path) == whole
        assert len(measured) == 4
    with torch.no_grad():
        next(model.parameters()).add_(1)
    (tmp_path / results.BOUNDS).write_text(kept)  # those of other weights
    measured.clear()
    assert likelihood.bounds(model, test, [1, 10], tmp_path) != whole
    assert len(measured) == 4


# --- Latent space ------------------------------------------------------------------------------------------


def latent_use(means: Tensor, log_variance: Tensor | float) -> dict[str, Any]:
    """How the latent space is used where posteriors have these means and log-variances."""
    parameters = torch.cat([means, torch.zeros_like(means) + log_variance], 1)
    return use_of_latent(model_of(nn.Identity(), nn.Identity(), means.shape[1]), parameters)


def test_kl_of_each_dimension_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    means, log_variances = torch.randn(2, 40, 3)
    expected = kl_divergence(Normal(means, (log_variances / 2).exp()), Normal(0.0, 1.0)).mean(0)
    found = latent_use(means, log_variances)
    torch.testing.assert_close(torch.tensor(found["kl_per_dimension"]), expected)
    information, divergence = found["mutual_information_low"], found["aggregate_kl_high"]
    assert information + divergence == pytest.approx(expected.sum().item(), rel=1e-5)
    information, divergence = found["mutual_information_high"], found["aggregate_kl_low"]
    assert information + divergence == pytest.approx(expected.sum().item(), rel=1e-5)


def test_active_units_are_those_whose_mean_moves() -> None:
    torch.manual_seed(0)
    deviations = torch.tensor([0.0, 0.05, 0.2, 1.0])  # variances 0, 0.0025, 0.04, 1
    means = torch.randn(5000, 4) * deviations
    assert latent_use(means, 0.0)["active_units"] == 2


def test_information_of_posteriors_that_do_not_overlap_is_the_number_of_images() -> None:
    means = 1000.0 * torch.arange(64).reshape(-1, 1).double()
    posterior = DiagonalNormal(means, torch.zeros_like(means))
    assert information_bound(posterior, posterior.sample()) == pytest.approx(math.log(64))


def test_bounds_of_any_distribution_are_those_of_ours() -> None:
    torch.manual_seed(0)
    means, log_variances = torch.randn(2, 30, 3, dtype=torch.float64)
    ours, prior = DiagonalNormal(means, log_variances), StandardPrior([3]).double()()
    z = ours.sample()
    other = Independent(Normal(means, (log_variances / 2).exp()), 1)
    assert information_bound(other, z) == pytest.approx(information_bound(ours, z))
    # The covariance of samples instead of the formula.
    assert aggregate_bound(other, z, prior) == pytest.approx(aggregate_bound(ours, z, prior), abs=0.1)


@pytest.mark.parametrize(("images", "dim"), [(20, 50), (11, 12), (30, 31)])
def test_bounds_of_wide_codes_are_those_of_the_whole_covariance(
    images: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    means, log_variances = torch.randn(2, images, dim, dtype=torch.float64)
    posterior, prior = DiagonalNormal(means, log_variances), StandardPrior([dim]).double()()
    z = posterior.sample()
    whole = aggregate_bound(posterior, z, prior)
    monkeypatch.setattr(latent_space, "WIDE", 0)
    assert aggregate_bound(posterior, z, prior) == pytest.approx(whole)


def test_bounds_of_too_many_codes_are_none_and_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    means = torch.randn(20, 4)
    whole = latent_use(means, 0.0)
    monkeypatch.setattr(latent_space, "MOST_VALUES", 79)
    found = latent_use(means, 0.0)
    assert [found[name] for name in latent_space.BOUNDED] == [None] * 4
    assert found["kl_per_dimension"] == pytest.approx(whole["kl_per_dimension"])
    (sentence,) = symptoms(found, {}, 4)
    assert re.search(r"not computed: .* a lower latent\.dim or data\.num_test", sentence)


def test_samplers_of_wide_codes_are_left_out_with_the_reason() -> None:
    (sentence,) = symptoms({"fid_samples_gaussian": None}, {}, 1025)
    assert "not computed: samplers" in sentence
    assert not symptoms({"fid_samples_gaussian": None}, {}, 1024)


def test_posteriors_that_are_the_prior_hold_no_information() -> None:
    found = latent_use(torch.zeros(2000, 4), 0.0)
    for name in ("mutual_information_low", "mutual_information_high", "aggregate_kl_low", "aggregate_kl_high"):
        assert found[name] == pytest.approx(0, abs=0.01), name


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_bounds_hold_the_truth_where_it_is_known(spread: float) -> None:
    torch.manual_seed(0)
    dim, own = 2, 0.7
    means = spread * torch.randn(4000, dim)
    found = latent_use(means, 2 * math.log(own))
    whole = spread**2 + own**2  # the aggregate is a Gaussian
    information = dim / 2 * math.log(whole / own**2)
    divergence = dim / 2 * (whole - 1 - math.log(whole))
    assert found["mutual_information_low"] == pytest.approx(information, abs=0.05)
    assert found["aggregate_kl_low"] == pytest.approx(divergence, abs=0.05)
    assert found["mutual_information_low"] < found["mutual_information_high"] + 0.05
    assert found["aggregate_kl_low"] < found["aggregate_kl_high"] + 0.05


def test_a_probe_finds_classes_that_lie_apart_and_guesses_where_they_do_not() -> None:
    torch.manual_seed(0)
    labels, test_labels = torch.arange(600) % 3, torch.arange(300) % 3
    centres = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]])
    apart = probe_accuracy(
        centres[labels] + torch.randn(600, 2), labels, centres[test_labels] + torch.randn(300, 2), test_labels
    )
    mixed = probe_accuracy(torch.randn(600, 2), labels, torch.randn(300, 2), test_labels)
    assert apart > 0.98
    assert 0.2 < mixed < 0.47


# --- Images ------------------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_the_formula() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(500, 8)) @ generator.normal(size=(8, 8))
    other = generator.normal(size=(400, 8)) @ generator.normal(size=(8, 8)) + 1
    covariances = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    distance = FrechetDistance(8)
    for real, features_ in ((True, one), (False, other)):
        for part in np.array_split(features_, 3):
            distance.add(torch.from_numpy(part), real=real)
    assert distance.value() == pytest.approx(expected, rel=1e-6)


def test_a_set_has_no_distance_from_itself_and_one_image_none_at_all() -> None:
    distance = FrechetDistance(3)
    assert distance.value() is None
    points = torch.randn(50, 3, dtype=torch.float64)
    distance.add(points, real=True)
    distance.add(points, real=False)
    assert distance.value() == pytest.approx(0, abs=1e-6)


@pytest.fixture
def measured(run_of: Compose) -> tuple[VAE, Any, Any]:
    settings = run_of("data.num_test=150", "data.num_train=300", "data.num_val=10", "latent.dim=8").config
    torch.manual_seed(0)
    data = config.build(settings.data)
    data.setup()
    return vae.build(settings), data, settings


LOSSES = {"reconstruction": 0.02, "kl": 0.3}


def test_psnr_and_ssim_are_those_of_a_reference_implementation(measured: tuple[VAE, Any, Any]) -> None:
    model, data, settings = measured
    found = measure(model, OBJECTIVE, data, settings, MetricsConfig(), LOSSES).figures
    images = data.splits["test"].images.float() / 255
    pairs = list(zip(images[:, 0].numpy(), model.eval().reconstruct(images)[:, 0].numpy(), strict=True))
    assert found["mse"] == pytest.approx(np.mean([(x - y) ** 2 for x, y in pairs]), rel=1e-5)
    psnr = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs]
    assert found["psnr"] == pytest.approx(np.mean(psnr), rel=1e-5)
    kind: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    # scikit-image leaves out the border, where the window hangs over: here the images are mirrored there.
    mirrored = [[np.pad(image, 5, mode="reflect") for image in pair] for pair in pairs]
    assert found["ssim"] == pytest.approx(np.mean([structural_similarity(x, y, **kind) for x, y in mirrored]), abs=1e-4)


def test_every_metric_is_a_number_and_those_of_fast_are_those_of_full(measured: tuple[VAE, Any, Any]) -> None:
    model, data, settings = measured
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    fast = measure(model, OBJECTIVE, data, settings, MetricsConfig(), LOSSES).figures
    full = measure(model, OBJECTIVE, data, settings, FULL, LOSSES).figures
    assert {name: full[name] for name in fast} == fast
    assert {*full} - {*fast} == {
        "iwae_1", "iwae_10", "iwae_100", "effective_samples", "bits_per_dim", "probe_accuracy",
        "fid_samples_gaussian", "fid_samples_mixture",
    }  # fmt: skip
    numbers = {name: value for name, value in full.items() if name != "kl_per_dimension"}
    assert all(math.isfinite(value) for value in (*numbers.values(), *full["kl_per_dimension"]))
    assert full["bits_per_dim"] == pytest.approx(math.log2(255) - full["iwae_100"] / (784 * math.log(2)), abs=1e-3)
    assert 1 < full["effective_samples"] < 100
    assert full["iwae_1"] < full["iwae_10"] < full["iwae_100"]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_figures_of_single_images_have_the_figures_as_their_means(measured: tuple[VAE, Any, Any]) -> None:
    model, data, settings = measured
    figures, images = measure(model, OBJECTIVE, data, settings, FULL, LOSSES)
    assert {*images} == {"total", "reconstruction", "kl", "elbo", "mse", "iwae_1", "iwae_10", "iwae_100"}
    assert all(values.shape == (150,) and values.dtype == np.float32 for values in images.values())
    for name in ("mse", "iwae_1", "iwae_10", "iwae_100"):
        assert images[name].mean() == pytest.approx(figures[name], rel=1e-5)
    batch = data.splits["test"].images.float() / 255
    with torch.no_grad():
        whole = OBJECTIVE(model.eval(), batch, 1.0)
    for name in ("total", "reconstruction", "kl"):
        assert images[name].mean() == pytest.approx(whole[name].item(), rel=0.02)  # other noise
    terms = {"reconstruction": whole["reconstruction"].item(), "kl": whole["kl"].item()}
    elbo = OBJECTIVE.elbo(terms, model)
    assert elbo is not None
    assert images["elbo"].mean() == pytest.approx(elbo, abs=0.02 * abs(elbo))


@pytest.mark.parametrize("sigma", [1e-4, 0.0005, 0.002, 0.005, 0.02, 0.04, 0.0999, 0.1, 0.3])
def test_the_mass_of_a_grey_level_is_the_integral_of_the_density_over_it(sigma: float) -> None:
    model = GaussianLikelihood((1, 28, 28), sigma=sigma, link="identity").eval()
    images = torch.randint(0, 256, (4, 1, 28, 28)) / 255
    means = images + 2 * sigma * torch.randn(4, 1, 28, 28)
    x = model(means)
    ends = (scipy.stats.norm.logcdf((images + end - means).double() / sigma) for end in (0.5 / 255, -0.5 / 255))
    upper, lower = (torch.from_numpy(end) for end in ends)
    # Above the mean the difference of two values near 1 cancels: there the mirror image is taken.
    mirrored = (torch.from_numpy(scipy.stats.norm.logsf((images + end - means).double() / sigma)) for end in
                (-0.5 / 255, 0.5 / 255))  # fmt: skip
    outer, inner = mirrored
    exact = torch.where(images > means, outer + torch.log(-torch.expm1(inner - outer)),
                        upper + torch.log(-torch.expm1(lower - upper)))  # fmt: skip
    torch.testing.assert_close(model.log_masses(x, images).double(), exact.flatten(1).sum(1), atol=0.02, rtol=1e-5)


def test_masses_of_grey_levels_sum_to_one() -> None:
    levels = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    inside = GaussianLikelihood((1, 1, 1), sigma=0.05, link="identity").eval()
    assert inside.log_masses(inside(torch.full((256, 1, 1, 1), 0.5)), levels).exp().sum().item() == pytest.approx(1)
    continuous = ContinuousBernoulliLikelihood((1, 1, 1)).eval()
    for logit in (-300.0, -3.0, 0.0, 0.05, 20.0):
        x = continuous(torch.full((256, 1, 1, 1), logit))
        assert continuous.log_masses(x, levels).double().exp().sum().item() == pytest.approx(1, abs=1e-4)


class Unknown(GaussianLikelihood):
    log_masses = Likelihood.log_masses


def test_a_batch_of_black_and_white_images_leaves_the_bits_of_the_others() -> None:
    decoder = nn.Sequential(nn.Linear(DIM, PIXELS), nn.Unflatten(1, SHAPE))
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM)), decoder).eval()
    grey = torch.full((4, *SHAPE), 51 / 255)
    test = HeldOutBatches(LightningDataModule(), [grey, torch.zeros(1, *SHAPE)], torch.empty(0))
    with torch.no_grad():
        found = likelihood.figures_of(likelihood.bounds(model, test, [100]), PIXELS)
    assert found["bits_per_dim"] is not None


def test_terms_of_a_subclass_are_not_those_of_its_parent(measured: tuple[VAE, Any, Any]) -> None:
    class More(MseKl):
        def forward(self, *arguments: Any) -> dict[str, Tensor]:
            terms = super().forward(*arguments)
            return terms | {"total": terms["total"] + 100}

    model, data, settings = measured
    assert "total" not in measure(model, More(beta=0.01), data, settings, MetricsConfig(), LOSSES).images


def test_a_users_figure_may_be_named_like_a_bound() -> None:
    assert symptoms({"iwae_mine": 1.0, "effective_samples": 1.0}, {}, 8) == []
    assert "loose bound" in symptoms({"iwae_100": 1.0, "effective_samples": 1.2}, {}, 8)[0]


@pytest.mark.parametrize("kind", ["binary images", "between levels", "a likelihood without"])
def test_bits_of_what_has_no_grey_levels_are_null(kind: str) -> None:
    images = torch.randint(0, 256, (5, *SHAPE)) / 255
    images = {"binary images": images.round(), "between levels": images.clamp(0, 1) * 0.999}.get(kind, images)
    likelihood_ = Unknown(SHAPE) if kind.startswith("a like") else GaussianLikelihood(SHAPE, sigma=0.2)
    decoder = nn.Sequential(nn.Linear(DIM, PIXELS), nn.Unflatten(1, SHAPE))
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM)), decoder, likelihood=likelihood_).eval()
    test = HeldOutBatches(LightningDataModule(), [images], torch.empty(0))
    with torch.no_grad():
        found = likelihood.figures_of(likelihood.bounds(model, test, [1, 100]), PIXELS)
    assert found["bits_per_dim"] is None
    assert found["iwae_100"] is not None


def test_equal_weights_all_count_and_one_large_one_counts_alone() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM))
    encoder[1].weight.data.zero_(), encoder[1].bias.data.zero_()
    decoder = nn.Sequential(nn.Linear(DIM, PIXELS), nn.Unflatten(1, SHAPE))
    decoder[0].weight.data.zero_()  # q(z|x) = p(z), and p(x|z) does not depend on z
    model, images = model_of(encoder, decoder), torch.rand(3, *SHAPE)
    with torch.no_grad():
        found = importance_weighted(model, images, [50], torch.Generator().manual_seed(0))
        torch.testing.assert_close(found["effective_samples"], torch.full((3,), 50.0).double())
        decoder[0].weight.data.fill_(1e4)
        found = importance_weighted(model, images, [50], torch.Generator().manual_seed(0))
    assert (found["effective_samples"] < 1.01).all()


def test_the_floor_is_the_distance_of_as_many_real_images(measured: tuple[VAE, Any, Any]) -> None:
    model, data, settings = measured
    found = measure(model, OBJECTIVE, data, settings, MetricsConfig(), LOSSES).figures
    distance = FrechetDistance(64)
    network = load_classifier()
    for split, real in (("test", True), ("train", False)):
        with torch.no_grad():
            distance.add(network.features(data.splits[split].images[:150].float() / 255), real=real)
    assert found["fid_floor"] == pytest.approx(distance.value(), rel=1e-3)
    assert found["fid_floor"] < found["fid_reconstructions"]


def test_what_cannot_be_had_is_left_out(run_of: Compose) -> None:
    few = ("data.num_test=12", "data.num_train=20", "data.num_val=0")
    settings = run_of(*few, "objective.beta=0").config
    small = settings.data.model_copy(update={"image_shape": [1, 28, 28], "dataset": "torchvision.datasets.MNIST"})
    settings = settings.model_copy(update={"data": small})
    data = config.build(run_of(*few).config.data)
    data.setup()
    found = measure(vae.build(settings), config.build(settings.objective), data, settings, FULL, LOSSES).figures
    # Without β there is no likelihood, and the classifier knows no digits.
    assert not {"elbo", "iwae_1", "bits_per_dim", "fid_samples", "fid_samples_mixture"} & {*found}
    assert {"psnr", "ssim", "active_units", "probe_accuracy"} <= {*found}


def test_of_one_image_there_is_no_variance_and_nothing_is_dead(run_of: Compose) -> None:
    settings = run_of("data.num_test=1", "encoder=mlp", "latent.dim=1").config
    data = config.build(settings.data)
    data.setup()
    found = measure(vae.build(settings), OBJECTIVE, data, settings, FULL, LOSSES).figures
    assert all(found[name] is None for name in ("active_units", "dead_units", "fid_reconstructions", "fid_samples"))
    assert math.isfinite(found["iwae_100"])


class Odd(LightningDataModule):
    """A user's: bytes that a hook makes to pixels, from a loader that does not know how many there are."""

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            generator = torch.Generator().manual_seed(0)
            for label in range(30):
                yield torch.randint(0, 256, (1, 28, 28), generator=generator, dtype=torch.uint8), label % 2

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.Stream(), batch_size=16)

    test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] / 255, batch[1]]


@pytest.mark.parametrize("limit", [None, 1.0, 2])
def test_batches_are_those_that_the_trainer_would_give(run_of: Compose, limit: float | None) -> None:
    settings = run_of("latent.dim=8", "encoder=mlp", "decoder=mlp").config
    trainer = settings.trainer.model_copy(update={"limit_test_batches": limit})
    settings = settings.model_copy(update={"trainer": trainer})
    found = measure(vae.build(settings).double(), OBJECTIVE, Odd(), settings, FULL, LOSSES).figures
    numbers = {name: value for name, value in found.items() if name != "kl_per_dimension"}
    assert all(math.isfinite(value) for value in numbers.values())
    assert found["probe_accuracy"] > 0.3


class LaplacePosterior(Posterior):
    """A user's own, for which torch has no divergence from our prior."""

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        return 2 * latent_shape[0]

    def forward(self, parameters: Tensor) -> Distribution:
        mean, log_scale = parameters.chunk(2, dim=1)
        return Independent(Laplace(mean, log_scale.exp()), 1)


def test_a_posterior_of_another_class_has_the_metrics_that_need_none_of_ours(measured: tuple[VAE, Any, Any]) -> None:
    _, data, settings = measured
    shape = (1, 28, 28)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 8))
    decoder = nn.Sequential(nn.Linear(4, 784), nn.Unflatten(1, shape))
    likelihood = GaussianLikelihood(shape, sigma=0.2)
    model = VAE(encoder, LaplacePosterior([4]), StandardPrior([4]), decoder, likelihood, shape)
    assert kind_of_divergence(model) == "estimated"
    found = measure(model, OBJECTIVE, data, settings, FULL, LOSSES).figures
    ours = measure(model_of(encoder, decoder, 4, likelihood, shape), OBJECTIVE, data, settings, FULL, LOSSES).figures
    assert {*ours} == {*found}
    assert found["kl_per_dimension"] is None
    assert all(math.isfinite(value) for name, value in found.items() if name != "kl_per_dimension")


def test_without_an_objective_nothing_is_measured_in_nats(measured: tuple[VAE, Any, Any]) -> None:
    model, data, settings = measured
    found = measure(model, None, data, settings, MetricsConfig(iwae=[1]), LOSSES).figures
    assert not {"elbo", "iwae_1", "bits_per_dim"} & {*found}


def test_a_variance_of_zero_has_no_matching_gaussian() -> None:
    means = torch.zeros(10, 2, dtype=torch.float64)
    posterior = DiagonalNormal(means, torch.full_like(means, -800.0))
    assert math.isnan(aggregate_bound(posterior, posterior.sample(), StandardPrior([2]).double()()))


def test_the_classifier_knows_clothes_and_its_weights_are_held_to_their_checksum(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    data = config.build(run_of().config.data)
    data.setup()
    images, labels = data.splits["test"]
    found = load_classifier()(images.float() / 255).argmax(1)
    assert (found == labels).float().mean() > 0.9
    changed = tmp_path / "v1.safetensors"
    changed.write_bytes(classifier.CLASSIFIER.read_bytes()[:-1] + b"\0")
    with pytest.raises(ClassifierError, match="not the weights of this version"):
        load_classifier(changed)
    with pytest.raises(ClassifierError, match=r"cannot be read \(No such file"):
        load_classifier(tmp_path / "v0.safetensors")


# --- What is wrong with a model ----------------------------------------------------------------------------


def test_dead_units_are_counted() -> None:
    torch.manual_seed(0)
    hidden = nn.Linear(PIXELS, 5)
    with torch.no_grad():
        hidden.bias.copy_(torch.tensor([-9.0, 9.0, 9.0, -9.0, 9.0]))  # two are never above zero
    encoder = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(5, 2 * DIM))
    channels = ConstantChannels(encoder)
    with channels:
        encoder(torch.rand(20, *SHAPE))
        encoder(torch.rand(20, *SHAPE))
    assert channels.dead() == 2
    encoder(torch.rand(1, *SHAPE))  # no longer watched
    assert channels.dead() == 2


@pytest.mark.parametrize(
    ("figures", "kl", "words"),
    [
        ({"active_units": 0}, {1: 0.1}, "posterior collapse: none of the 8 latent"),
        ({"active_units": 5}, {1: 0.1}, "dead latent dimensions: .* 3 of 8"),
        ({"dead_units": 7}, {}, "dead units: 7 channels"),
        ({}, {1: 0.4, 2: 25.0, 4: 0.5}, "exploding KL: 25 nats a latent dimension in epoch 2"),
    ],
)
def test_what_is_wrong_is_reported(figures: dict[str, Any], kl: dict[int, float], words: str) -> None:
    (sentence,) = symptoms(figures, kl, 8)
    assert re.search(words, sentence)


def test_nothing_is_reported_of_a_sound_model() -> None:
    assert symptoms({"active_units": 8, "dead_units": 0}, {1: 0.3, 2: 0.4}, 8) == []
