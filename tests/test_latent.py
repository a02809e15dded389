"""KL and samples against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence
from vae_lab.model.latent import Gaussian

from vae_lab.model.interfaces import Posterior


def test_kl_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    posterior = Posterior(torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64))
    expected = kl_divergence(Normal(posterior.mean, (posterior.log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Gaussian(5).kl(posterior), expected)


def test_kl_is_zero_at_the_prior_and_known_by_hand() -> None:
    latent = Gaussian(1)
    assert latent.kl(Posterior(torch.zeros(1, 1), torch.zeros(1, 1))).item() == 0
    # mean 1, variance 1: ½; mean 0, variance e: ½(e - 2)
    assert latent.kl(Posterior(torch.ones(1, 1), torch.zeros(1, 1))).item() == 0.5
    torch.testing.assert_close(latent.kl(Posterior(torch.zeros(1, 1), torch.ones(1, 1))).item(), 0.3591409142)


def test_sample_has_the_posteriors_moments() -> None:
    torch.manual_seed(0)
    posterior = Posterior(torch.full((200_000, 1), 2.0), torch.full((200_000, 1), 0.5))
    z = Gaussian(1).sample(posterior)
    assert abs(z.mean().item() - 2) < 0.01
    assert abs(z.var().item() - torch.tensor(0.5).exp().item()) < 0.02


def test_given_noise_decides_the_sample() -> None:
    posterior = Posterior(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2))
    assert Gaussian(2).sample(posterior, torch.tensor([[0.5, 2.0]])).tolist() == [[1.5, 1.0]]


def test_half_precision_is_left_before_the_arithmetic() -> None:
    latent = Gaussian(3)
    posterior = latent.posterior(torch.randn(2, latent.num_parameters, dtype=torch.bfloat16))
    assert latent.kl(posterior).dtype == latent.sample(posterior).dtype == torch.float32
