"""Metrics of how a model uses its latent space."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.data import ImageModule
from vae_lab.evaluation.batches import Codes, HeldOutBatches, encoded, exact, generator_for, in_double
from vae_lab.model.distributions import DiagonalNormal, StandardNormal, by_dimension, divergence
from vae_lab.model.flows import Flow
from vae_lab.model.hierarchy import Hierarchy
from vae_lab.model.quantized import Quantized
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import AT_ONCE, VAE

ACTIVE = 0.01
"""A latent dimension is active if its posterior mean varies by more than this over the images (Burda et al. 2016)."""

MOST_VALUES = 2**25
"""Images times latent dimensions up to which posteriors are compared with each other: 256 MiB per tensor of them.

The time grows with the square of the images and linearly with the dimensions, as that of training does.
"""
BOUNDED = ("mutual_information_low", "mutual_information_high", "aggregate_kl_low", "aggregate_kl_high")
"""Figures that are None beyond that."""
WIDE = 1024
"""Dimensions beyond which a covariance of fewer images is not made a matrix, whose Cholesky factor takes cubic time."""

ROWS = 500
"""Number of z that are compared with all posteriors at once."""

PAIRS = 250
"""Number of images whose posteriors are compared with each other, unless they are diagonal normals: without matrix
products the time grows with the square of this number."""

DRAWS = 32
"""Samples of each posterior that stand for its moments where these have no formula."""


def use_of_latent(vae: VAE, parameters: Float[Tensor, "n ..."]) -> dict[str, Any]:
    """How a model uses its latent space, computed from the encoder's output for the images of a data set.

    - `kl_per_dimension`: mean KL divergence of each dimension, in nats; None if the total is no sum over dimensions.
    - `active_units`: dimensions whose posterior mean has a variance above 0.01 (Burda et al. 2016).
    - `mutual_information_low`, `…_high`: bounds of the mutual information of z and its image, in nats.
    - `aggregate_kl_low`, `…_high`: bounds of KL(q(z) ‖ p(z)), where q(z) is the mean posterior.

    Of a quantised posterior it computes the figures of `use_of_codebook` instead.

    The last two refer to the distribution from which the images are a sample. The mean KL divergence is
    the sum of the two (Hoffman & Johnson 2016), so the lower bound of one gives the upper bound of the other; see
    `information_bound` and `aggregate_bound`. They are missing where the posterior has no density, and None beyond
    `MOST_VALUES`.
    """
    parts = torch.split(parameters, AT_ONCE)
    if vae.posterior.is_quantized:
        return use_of_codebook([vae.posterior(part) for part in parts])
    if len(parameters) * vae.latent_dim > MOST_VALUES:
        return _of_dimensions(vae, parts) | dict.fromkeys(BOUNDED)
    with drawn_from(generator_for("aggregate")):
        z = torch.cat([in_double(vae.posterior(part).sample()) for part in parts])
    densities = exact(vae) if _has_weights(vae) else vae
    prior = densities.prior()
    dimensions, nats, means, errors = [], [], [], []
    is_diagonal = True
    with drawn_from(generator_for("moments")):
        for part, own in zip(parts, torch.split(z, AT_ONCE), strict=True):
            posterior = densities.posterior(in_double(part))
            is_diagonal = isinstance(posterior, DiagonalNormal)
            dimensions.append(by_dimension(posterior, prior))
            if vae.posterior.has_density:
                nats.append(divergence(posterior, prior, own).nats)
            mean, error = _mean(posterior)
            means.append(mean.flatten(1))
            errors.append(error.flatten(1))
    of_dimensions = [one for one in dimensions if one is not None]
    variance = torch.cat(means).var(0) - torch.cat(errors).mean(0) if len(z) > 1 else None
    figures: dict[str, Any] = {
        "kl_per_dimension": torch.cat(of_dimensions).mean(0).flatten().tolist() if of_dimensions else None,
        "active_units": None if variance is None else int((variance > ACTIVE).sum()),
    }
    if len(z) > 1 and nats:
        total = torch.cat(nats).mean().item()

        def first(count: int) -> tuple[Distribution, Tensor]:
            count = len(z) if is_diagonal else count
            return densities.posterior(in_double(parameters[:count])), z[:count]

        information = information_bound(*first(PAIRS))
        with drawn_from(generator_for("draws")):
            aggregate = aggregate_bound(*first(AT_ONCE), prior)
        figures |= {"mutual_information_low": information, "aggregate_kl_high": total - information}
        if math.isfinite(aggregate):
            aggregate = max(0.0, aggregate)  # as a divergence is
            figures |= {"mutual_information_high": total - aggregate, "aggregate_kl_low": aggregate}
    return figures


def use_of_codebook(posteriors: Sequence[Quantized]) -> dict[str, float]:
    """How the codes of the images of a data set use a codebook.

    - `rate_bits`: log₂ K for each position, the bits of an image's codes.
    - `codebook_used`: the share of the K codes that occur.
    - `codebook_perplexity`: exp of the entropy of their frequencies: K if all occur equally often.
    """
    size = posteriors[0].num_codes
    indices = torch.cat([one.indices.reshape(len(one.indices), -1) for one in posteriors])
    counts = torch.bincount(indices.flatten().cpu(), minlength=size).double()
    frequencies = counts / counts.sum()
    return {
        "rate_bits": indices.shape[1] * math.log2(size),
        "codebook_used": (counts > 0).double().mean().item(),
        "codebook_perplexity": torch.special.entr(frequencies).sum().exp().item(),
    }


def _of_dimensions(vae: VAE, parts: Sequence[Tensor]) -> dict[str, Any]:
    """The first two figures, in the model's own type, part by part."""
    posteriors = [vae.posterior(part) for part in parts]
    dimensions = [one for q in posteriors if (one := by_dimension(q, vae.prior())) is not None]
    variance = torch.cat([_mean(q)[0].flatten(1) for q in posteriors]).var(0)
    return {
        "kl_per_dimension": torch.cat(dimensions).mean(0).flatten().tolist() if dimensions else None,
        "active_units": int((variance > ACTIVE).sum()) if sum(map(len, parts)) > 1 else None,
    }


def _has_weights(vae: VAE) -> bool:
    """Whether a posterior or a prior needs a model in 64 bits, whose copy takes twice the memory of the model."""
    return not isinstance(vae.prior(), StandardNormal) or any(True for _ in vae.posterior.parameters())


def _mean(posterior: Distribution) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
    """The mean of each posterior, and the variance of its error: not 0 where means are estimated."""
    if not isinstance(posterior, Flow | Hierarchy):
        return posterior.mean, torch.zeros_like(posterior.mean)
    draws = posterior.sample((DRAWS,))
    return draws.mean(0), draws.var(0) / DRAWS


def information_bound(posterior: Distribution, z: Float64[Tensor, "n ..."]) -> float:
    """A lower bound of the mutual information of image and z, in nats (Hoffman & Johnson 2016).

    It compares one z of each of the N posteriors with all of them, log q(zᵢ|xᵢ) − log (1/N) Σⱼ q(zᵢ|xⱼ), and cannot
    exceed ln N.

    Args:
        posterior: the posteriors of the N images, in 64 bits.
        z: one sample of each posterior.
    """
    mixture = torch.cat([_log_mean_posterior(posterior, rows) for rows in torch.split(z, ROWS)])
    return (posterior.log_prob(z) - mixture).mean().item()


def aggregate_bound(posterior: Distribution, z: Float64[Tensor, "n ..."], prior: Distribution) -> float:
    """A lower bound of KL(q(z) ‖ p(z)), in nats; not finite if there are too few images for their number of dimensions.

    It fits a Gaussian g with the mean and covariance of one half of the images, and averages log g(z) − log p(z) over
    the other half: no density g gives more than the divergence itself. The covariance is that of samples unless the
    posteriors are diagonal normals.

    Args:
        posterior: the posteriors of the N images, in 64 bits.
        z: one sample of each posterior.
        prior: p(z).
    """
    halves = torch.arange(len(z), device=z.device) % 2 == 0
    draws = None if isinstance(posterior, DiagonalNormal) else posterior.sample((DRAWS,)).flatten(2)
    gains = []
    for fitted, held_out in ((halves, ~halves), (~halves, halves)):
        if isinstance(posterior, DiagonalNormal):
            codes, variance = posterior.mean[fitted].flatten(1), posterior.variance[fitted].flatten(1).mean(0)
            if codes.shape[1] > max(len(codes), WIDE):
                mean = codes.mean(0)
                log_density = _log_low_rank_gaussian(codes - mean, variance, z[held_out].flatten(1) - mean)
                gains.append(log_density - prior.log_prob(z[held_out]))
                continue
            within = torch.diag(variance)
        else:
            assert draws is not None
            codes, within = draws[:, fitted].flatten(0, 1), torch.zeros((), dtype=z.dtype, device=z.device)
        centred = codes - codes.mean(0)
        covariance = centred.T @ centred / len(codes) + within
        log_density = _log_gaussian(codes.mean(0), covariance, z[held_out].flatten(1))
        gains.append(log_density - prior.log_prob(z[held_out]))
    return torch.cat(gains).mean().item()


def _log_mean_posterior(posterior: Distribution, z: Float64[Tensor, "m ..."]) -> Float64[Tensor, " m"]:
    """Log (1/N) Σⱼ q(zᵢ|xⱼ)."""
    if not isinstance(posterior, DiagonalNormal):
        return torch.stack([posterior.log_prob(one).logsumexp(0) for one in z]) - math.log(posterior.batch_shape[0])
    # Matrix products, because a tensor of all pairs and dimensions would not fit into memory.
    z, mean, log_variance = (one.flatten(1) for one in (z, posterior.mean, posterior.log_variance))
    precision = torch.exp(-log_variance)
    squared = z.square() @ precision.T - 2 * z @ (mean * precision).T + (mean.square() * precision).sum(1)
    constant = (log_variance + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(-0.5 * (squared + constant), 1) - math.log(len(mean))


def _log_gaussian(
    mean: Float64[Tensor, " z"], covariance: Float64[Tensor, "z z"], z: Float64[Tensor, "m z"]
) -> Float64[Tensor, " m"]:
    """The log-density at z; NaN if rounding, or too few codes, made a variance 0."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        return torch.full_like(z[:, 0], math.nan)
    whitened = torch.linalg.solve_triangular(root, (z - mean).T, upper=False)
    constant = root.diagonal().log().sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)
    return -0.5 * whitened.square().sum(0) - constant


def _log_low_rank_gaussian(
    factor: Float64[Tensor, "n z"], variance: Float64[Tensor, " z"], z: Float64[Tensor, "m z"]
) -> Float64[Tensor, " m"]:
    """Log-density at z of N(0, factorᵀ·factor / n + diag variance) for n < Z, in time linear in Z.

    By the Woodbury identity and the matrix determinant lemma; NaN if rounding made a variance 0.
    """
    spread = variance.sqrt()
    factor, z = factor / spread / math.sqrt(len(factor)), z / spread
    root, failed = torch.linalg.cholesky_ex(torch.eye(len(factor)).to(factor) + factor @ factor.T)
    if failed:
        return torch.full_like(z[:, 0], math.nan)
    explained = torch.linalg.solve_triangular(root, factor @ z.T, upper=False)
    constant = root.diagonal().log().sum() + spread.log().sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)
    return -0.5 * (z.square().sum(1) - explained.square().sum(0)) - constant


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
