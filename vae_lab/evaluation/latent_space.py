"""Metrics of how a model uses its latent space."""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.data import ImageModule
from vae_lab.evaluation.batches import Codes, HeldOutBatches, encoded, exact, generator_for, in_double
from vae_lab.model.distributions import DiagonalNormal, by_dimension, divergence
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE

ACTIVE = 0.01
"""A latent dimension is active if its posterior mean varies by more than this over the images (Burda et al. 2016)."""

ROWS = 500
"""Number of z that are compared with all posteriors at once."""


def use_of_latent(vae: VAE, parameters: Float[Tensor, "n ..."]) -> dict[str, Any]:
    """How a model uses its latent space, computed from the encoder's output for the images of a data set.

    - `kl_per_dimension`: mean KL divergence of each dimension, in nats; None if the total is no sum over dimensions.
    - `active_units`: dimensions whose posterior mean has a variance above 0.01 (Burda et al. 2016).
    - `mutual_information_low`, `…_high`: bounds of the mutual information of z and its image, in nats.
    - `aggregate_kl_low`, `…_high`: bounds of KL(q(z) ‖ p(z)), where q(z) is the mean posterior.

    The last two refer to the distribution from which the images are a sample. The mean KL divergence is
    the sum of the two (Hoffman & Johnson 2016), so the lower bound of one gives the upper bound of the other; see
    `aggregate_bounds`.
    """
    with drawn_from(generator_for("aggregate")):
        z = in_double(vae.posterior(parameters).sample())
    densities = exact(vae)
    posterior, prior = densities.posterior(in_double(parameters)), densities.prior()
    dimensions = by_dimension(posterior, prior)
    mean = posterior.mean.flatten(1)
    figures: dict[str, Any] = {
        "kl_per_dimension": None if dimensions is None else dimensions.mean(0).flatten().tolist(),
        "active_units": int((mean.var(0) > ACTIVE).sum()) if len(mean) > 1 else None,
    }
    if len(mean) > 1:
        total = divergence(posterior, prior, z).nats.mean().item()
        information, aggregate = aggregate_bounds(posterior, prior, z)
        figures |= {"mutual_information_low": information, "aggregate_kl_high": total - information}
        if aggregate is not None:
            figures |= {"mutual_information_high": total - aggregate, "aggregate_kl_low": aggregate}
    return figures


def aggregate_bounds(
    posterior: Distribution, prior: Distribution, z: Float64[Tensor, "n ..."]
) -> tuple[float, float | None]:
    """Lower bounds, in nats: of the mutual information of image and z, and of KL(q(z) ‖ p(z)).

    Both are averages over one z of each of the N posteriors. The first compares each z with all posteriors,
    log q(zᵢ|xᵢ) − log (1/N) Σⱼ q(zᵢ|xⱼ) (Hoffman & Johnson 2016); it cannot exceed ln N. The second fits a Gaussian g
    with the mean and covariance of one half of the images, and averages log g(z) − log p(z) over the other half: no
    density g gives more than the divergence itself. It is computed for posteriors with diagonal covariance, and is None
    for others.

    Args:
        posterior: the posteriors of the N images, in 64 bits.
        prior: p(z).
        z: one sample of each posterior.
    """
    aggregate = torch.cat([_log_mean_posterior(posterior, rows) for rows in torch.split(z, ROWS)])
    information = (posterior.log_prob(z) - aggregate).mean().item()
    if not isinstance(posterior, DiagonalNormal):
        return information, None
    halves = torch.arange(len(z), device=z.device) % 2 == 0
    gains = []
    for fitted, held_out in ((halves, ~halves), (~halves, halves)):
        part = DiagonalNormal(posterior.mean[fitted], posterior.log_variance[fitted])
        gains.append(_log_matching_gaussian(part, z[held_out]) - prior.log_prob(z[held_out]))
    return information, torch.cat(gains).mean().item()


def _log_mean_posterior(posterior: Distribution, z: Float64[Tensor, "m ..."]) -> Float64[Tensor, " m"]:
    """Log (1/N) Σⱼ q(zᵢ|xⱼ)."""
    if not isinstance(posterior, DiagonalNormal):
        return torch.stack([posterior.log_prob(one).logsumexp(0) for one in z]) - math.log(posterior.batch_shape[0])
    # Matrix products, because a tensor of all pairs and dimensions would not fit into memory.
    mean, log_variance = posterior.mean, posterior.log_variance
    precision = torch.exp(-log_variance)
    squared = z.square() @ precision.T - 2 * z @ (mean * precision).T + (mean.square() * precision).sum(1)
    constant = (log_variance + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(-0.5 * (squared + constant), 1) - math.log(len(mean))


def _log_matching_gaussian(posterior: DiagonalNormal, z: Float64[Tensor, "m z"]) -> Float64[Tensor, " m"]:
    """Log-density at z of the Gaussian with the mean and covariance of the mixture of the posteriors."""
    mean = posterior.mean
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean) + torch.diag(posterior.variance.mean(0))
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:  # rounding made a variance 0
        return torch.full_like(z[:, 0], math.nan)
    whitened = torch.linalg.solve_triangular(root, (z - mean.mean(0)).T, upper=False)
    constant = root.diagonal().log().sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)
    return -0.5 * whitened.square().sum(0) - constant


def training_codes(vae: VAE, data: LightningDataModule, like: Tensor) -> Codes:
    """Encode the training images, in the order of their files."""
    return encoded(vae, HeldOutBatches(data, labelled_training_images(data), like))


def probe(train: Codes, test: Codes) -> float | None:
    """Accuracy of the probe; None without labels, or with a single class."""
    if train.labels is None or test.labels is None or len(torch.unique(train.labels)) < 2:
        return None
    return probe_accuracy(train.mean, train.labels, test.mean, test.labels)


def labelled_training_images(data: LightningDataModule) -> Any:
    """Batches of training images, with labels if the data module has them."""
    return data.labelled("train") if isinstance(data, ImageModule) else data.train_dataloader()


def probe_accuracy(
    codes: Float[Tensor, "n z"],
    labels: Int[Tensor, " n"],
    test_codes: Float[Tensor, "m z"],
    test_labels: Int[Tensor, " m"],
) -> float:
    """Accuracy on the test images of logistic regression from posterior means to labels.

    It is trained on the standardised codes of the training images (Alain & Bengio 2017). Only this metric uses labels.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough after 1000 steps
        probe.fit(in_double(codes).cpu().numpy(), labels.cpu().numpy())
    return float(probe.score(in_double(test_codes).cpu().numpy(), test_labels.cpu().numpy()))
