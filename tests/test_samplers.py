"""Samplers of codes: what they recover, what they refuse, and the Fréchet distances of their images."""

import inspect

import pytest
import torch
from conftest import Compose
from torch import Tensor, nn

from vae_lab import config, results
from vae_lab.config import MetricsConfig
from vae_lab.evaluation.measure import measure
from vae_lab.model import samplers, vae
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.vae import VAE
from vae_lab.objectives.mse_kl import MseKl
from vae_lab.training import plan

LOSSES = {"reconstruction": 0.02, "kl": 0.4}
OBJECTIVE = MseKl(beta=0.01)
SAMPLERS = MetricsConfig(samplers=True)


def covariance(codes: Tensor) -> Tensor:
    return torch.cov(codes.double().T, correction=0)


def drawn(count: int, mean: list[float], root: list[list[float]], seed: int) -> Tensor:
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(mean) + noise @ torch.tensor(root).T


def test_a_gaussian_has_the_mean_and_covariance_of_the_codes_and_so_have_its_samples() -> None:
    codes = drawn(500, [1.0, -2.0, 0.5], [[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [0.0, -1.0, 3.0]], seed=0)
    sampler = samplers.fit_codes(codes, "gaussian")
    root = sampler.roots[0]
    torch.testing.assert_close(sampler.means[0], codes.double().mean(0))
    torch.testing.assert_close(root @ root.T, covariance(codes), rtol=1e-4, atol=1e-4)
    samples = sampler.sample(200_000, seed=1)
    assert samples.dtype is torch.float32
    torch.testing.assert_close(samples.double().mean(0), sampler.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(covariance(samples), covariance(codes), rtol=0.02, atol=0.03)


def test_a_mixture_recovers_the_components_that_codes_were_drawn_from() -> None:
    truth = [
        (600, [-9.0, 0.0], [[1.0, 0.0], [0.8, 0.4]]),
        (300, [0.0, 9.0], [[0.3, 0.0], [0.0, 2.0]]),
        (100, [9.0, 0.0], [[1.0, 0.0], [-1.5, 0.5]]),
    ]
    parts = [drawn(*one, seed) for seed, one in enumerate(truth)]
    shuffled = torch.cat(parts)[torch.randperm(1000, generator=torch.Generator().manual_seed(9))]
    sampler = samplers.fit_codes(shuffled, "mixture", components=3)
    order = sampler.means[:, 0].argsort().tolist()
    samples = sampler.sample(100_000, seed=2)
    nearest = torch.cdist(samples.double(), sampler.means[order]).argmin(1)
    for number, (part, component) in enumerate(zip(parts, order, strict=True)):
        assert sampler.weights[component].item() == pytest.approx(len(part) / 1000, abs=1e-6)
        torch.testing.assert_close(sampler.means[component], part.double().mean(0), rtol=0, atol=1e-4)
        root = sampler.roots[component]
        torch.testing.assert_close(root @ root.T, covariance(part), rtol=1e-3, atol=1e-3)
        own = samples[nearest == number]
        assert len(own) / len(samples) == pytest.approx(len(part) / 1000, abs=0.01)
        torch.testing.assert_close(covariance(own), covariance(part), rtol=0.05, atol=0.05)


def test_equal_codes_and_seeds_give_equal_samples_and_no_other_stream_moves() -> None:
    codes = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    one, other = (samplers.fit_codes(codes, "mixture", seed=3) for _ in range(2))
    assert torch.equal(one.sample(20, seed=1), other.sample(20, seed=1))
    assert not torch.equal(one.sample(20, seed=1), one.sample(20, seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one.sample(20), one.sample(20))


@pytest.mark.parametrize("kind", samplers.KINDS)
@pytest.mark.parametrize("codes", [torch.randn(300, 256), torch.ones(12, 4)], ids=["fewer to a component", "all equal"])
def test_codes_without_a_covariance_of_full_rank_fit_too(kind: samplers.Kind, codes: Tensor) -> None:
    samples = samplers.fit_codes(codes, kind).sample(500, seed=0)
    assert samples.isfinite().all()
    torch.testing.assert_close(samples.std(0).mean(), codes.std(0).mean(), rtol=0.1, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "mixtur"}, "kind must be 'gaussian' or 'mixture', but is 'mixtur'"),
        ({"components": 0}, "components must be at least 1, but is 0"),
        ({"components": 31}, "codes must be at least 31, one for each of 31 components, but there are 30"),
        ({"codes": torch.zeros(1, 4), "kind": "gaussian"}, "codes must be at least 2, but there is 1"),
        ({"codes": torch.zeros(30)}, r"codes must have shape \(n, z\), but got \(30,\)"),
        ({"codes": torch.full((30, 4), torch.nan)}, "codes must be finite numbers, but some are not"),
    ],
)
def test_what_cannot_be_fitted_is_reported(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        # Outside the tests no annotation is checked.
        inspect.unwrap(samplers.fit_codes)(**{"codes": torch.randn(30, 4)} | change)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="^n must be at least 1, but is 0$"):
        samplers.fit_codes(torch.randn(30, 4), "gaussian").sample(0)


def test_the_codes_of_a_model_are_samples_of_its_posteriors(run_of: Compose) -> None:
    """Where every posterior is the prior the means alone have no spread."""
    model = vae.build(run_of("latent.dim=4", "encoder=mlp", "decoder=mlp").config).eval()
    for parameter in model.encoder.parameters():
        nn.init.zeros_(parameter)
    sampler = samplers.fit(model, torch.rand(3000, 1, 28, 28), "gaussian", seed=0)
    torch.testing.assert_close(sampler.roots[0], torch.eye(4, dtype=torch.float64), rtol=0, atol=0.06)
    assert model.decode(sampler.sample(5, seed=1)).shape == (5, 1, 28, 28)
    with pytest.raises(ValueError, match="images must have shape"):
        samplers.fit(model, torch.rand(30, 28, 28))


class Components(nn.Module):
    """Principal components of images, scaled, as a posterior that is all but certain."""

    def __init__(self, images: Tensor, dim: int, scale: float) -> None:
        super().__init__()
        flat = images.flatten(1)
        self.mean, self.scale = nn.Parameter(flat.mean(0)), scale
        self.axes = nn.Parameter(torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:dim])

    def forward(self, images: Tensor) -> Tensor:
        mean = (images.flatten(1) - self.mean) @ self.axes.T * self.scale
        return torch.cat([mean, torch.full_like(mean, -12.0)], 1)


class Back(nn.Module):
    def __init__(self, encoder: Components) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, z: Tensor) -> Tensor:
        return (z / self.encoder.scale @ self.encoder.axes + self.encoder.mean).unflatten(1, (1, 28, 28)).clamp(0, 1)


def test_the_closer_to_the_codes_the_closer_to_the_test_images(run_of: Compose) -> None:
    settings = run_of("data.num_train=1500", "data.num_test=500", "latent.dim=16").config
    data = config.build(settings.data)
    data.setup()
    encoder = Components(data.splits["train"].images.float() / 255, 16, scale=5.0)
    likelihood = GaussianLikelihood([1, 28, 28], sigma=0.1, link="identity")
    model = VAE(encoder, DiagonalPosterior([16]), StandardPrior([16]), Back(encoder), likelihood).eval()
    found = measure(model, OBJECTIVE, data, settings, SAMPLERS, LOSSES).figures
    assert 1.3 * found["fid_samples_mixture"] < found["fid_samples_gaussian"] < 0.5 * found["fid_samples"]
    assert found == measure(model, OBJECTIVE, data, settings, SAMPLERS, LOSSES).figures


def test_too_few_training_images_leave_the_distances_out(run_of: Compose) -> None:
    settings = run_of("data.num_train=9", "data.num_val=0", "data.num_test=12", "encoder=mlp", "decoder=mlp").config
    data = config.build(settings.data)
    data.setup()
    found = measure(vae.build(settings), OBJECTIVE, data, settings, SAMPLERS, LOSSES).figures
    assert found["fid_samples"] > 0
    assert not {"fid_samples_gaussian", "fid_samples_mixture"} & {*found}


def test_a_full_measurement_of_before_is_one_without_samplers(run_of: Compose) -> None:
    run = run_of("metrics=full")
    before = {"iwae": [1, 10, 100], "frechet": True, "probe": True}
    result = results.Result.model_construct(metrics=before)
    assert run.config.metrics.samplers
    assert not plan.measured(run, result)
    assert plan.measured(run, results.Result.model_construct(metrics=before | {"samplers": True}))
    assert MetricsConfig().with_all_of(SAMPLERS).samplers
