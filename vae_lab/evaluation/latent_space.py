"""What a model keeps in its latent space."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor

from vae_lab.data.batches import images_of, labels_of
from vae_lab.evaluation.batches import Codes, HeldOutBatches, generator_for, in_double, joined, standard_noise
from vae_lab.model.latent import Gaussian, Posterior
from vae_lab.model.vae import VAE

ACTIVE = 0.01
"""A latent dimension is active if its posterior mean varies by more than this over the images (Burda et al. 2016)."""

ROWS = 500
"""Images whose z is held against all posteriors at once."""


def use_of_latent(latent: Gaussian, posterior: Posterior) -> dict[str, Any]:
    """How a model uses its latent space, from the posteriors of a data set's images.

    - `kl_per_dimension`: mean KL divergence of each dimension from the prior, in nats.
    - `active_units`: dimensions whose posterior mean has a variance above 0.01 (Burda et al. 2016).
    - `mutual_information_low`, `…_high`: bounds of the information that z has about the image it is of, in nats.
    - `aggregate_kl_low`, `…_high`: bounds of KL(q(z) ‖ p(z)), where q(z) is the mean of the posteriors. Both are
      meant over all images of the kind, of which these are a sample.

    The KL divergence of an image is the sum of the two (Hoffman & Johnson 2016), so that one's lower bound makes the
    other's upper one; see `aggregate_bounds`.
    """
    kl = in_double(latent.kl(posterior)).mean(0)
    figures: dict[str, Any] = {
        "kl_per_dimension": kl.tolist(),
        "active_units": int((in_double(posterior.mean).var(0) > ACTIVE).sum()) if len(posterior.mean) > 1 else None,
    }
    if isinstance(latent, Gaussian) and len(posterior.mean) > 1:
        information, divergence = aggregate_bounds(latent, posterior, generator_for("aggregate"))
        total = kl.sum().item()
        figures |= {
            "mutual_information_low": information,
            "mutual_information_high": total - divergence,
            "aggregate_kl_low": divergence,
            "aggregate_kl_high": total - information,
        }
    return figures


def aggregate_bounds(latent: Gaussian, posterior: Posterior, generator: torch.Generator) -> tuple[float, float]:
    """Lower bounds, in nats: of the mutual information of image and z, and of KL(q(z) ‖ p(z)).

    Both are averages over one z of each of the N posteriors. The first holds each z against all of them,
    log q(zᵢ|xᵢ) − log (1/N) Σⱼ q(zᵢ|xⱼ) (Hoffman & Johnson 2016); it cannot exceed ln N. The second holds the z of one
    half of the images against a Gaussian of the other half's mean and covariance, log g(z) − log p(z): no density g
    gives more than the divergence itself.
    """
    posterior = Posterior(*map(in_double, posterior))
    count = len(posterior.mean)
    z = latent.sample(posterior, standard_noise(count, latent.dim, generator).to(posterior.mean))
    own = latent.log_posterior(posterior, z)
    aggregate = torch.cat([_log_mean_posterior(latent, posterior, rows) for rows in torch.split(z, ROWS)])
    information = (own - aggregate).mean().item()
    halves = torch.arange(count, device=z.device) % 2 == 0
    gains = []
    for fitted, held_out in ((halves, ~halves), (~halves, halves)):
        part = Posterior(*(values[fitted] for values in posterior))
        gains.append(_log_matching_gaussian(part, z[held_out]) - latent.log_prior(z[held_out]))
    return information, torch.cat(gains).mean().item()


def _log_mean_posterior(latent: Gaussian, posterior: Posterior, z: Float64[Tensor, "m z"]) -> Float64[Tensor, " m"]:
    """Log (1/N) Σⱼ q(zᵢ|xⱼ), by matrix products: a table of all pairs and dimensions would not fit into memory."""
    mean, log_variance = posterior
    precision = torch.exp(-log_variance)
    squared = z.square() @ precision.T - 2 * z @ (mean * precision).T + (mean.square() * precision).sum(1)
    constant = (log_variance + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(-0.5 * (squared + constant), 1) - math.log(len(mean))


def _log_matching_gaussian(posterior: Posterior, z: Float64[Tensor, "m z"]) -> Float64[Tensor, " m"]:
    """Log-density of the Gaussian that has the mean and covariance of the posteriors' mixture."""
    mean, log_variance = posterior
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean) + torch.diag(log_variance.exp().mean(0))
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:  # a variance that rounding has made 0
        return torch.full_like(z[:, 0], math.nan)
    whitened = torch.linalg.solve_triangular(root, (z - mean.mean(0)).T, upper=False)
    constant = root.diagonal().log().sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)
    return -0.5 * whitened.square().sum(0) - constant


def training_codes(vae: VAE, data: LightningDataModule, place: Tensor) -> Codes:
    """What the encoder makes of the training images, in the order of their files."""
    return _encode(vae, HeldOutBatches(data, labelled_training_images(data), place))


def probe(train: Codes, test: Codes) -> float | None:
    """Accuracy of the probe; None without classes, or with a single one."""
    if train.labels is None or test.labels is None or len(torch.unique(train.labels)) < 2:
        return None
    return probe_accuracy(train.mean, train.labels, test.mean, test.labels)


def labelled_training_images(data: LightningDataModule) -> Any:
    """Batches of training images and their classes, if the data module has any."""
    return data.labelled("train") if hasattr(data, "labelled") else data.train_dataloader()


def probe_accuracy(
    codes: Float[Tensor, "n z"],
    labels: Int[Tensor, " n"],
    test_codes: Float[Tensor, "m z"],
    test_labels: Int[Tensor, " m"],
) -> float:
    """Share of the test images whose class logistic regression finds from their posterior means.

    It learns from the training images' codes, standardised (Alain & Bengio 2017); labels serve this figure only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough after a thousand steps
        probe.fit(in_double(codes).cpu().numpy(), labels.cpu().numpy())
    return float(probe.score(in_double(test_codes).cpu().numpy(), test_labels.cpu().numpy()))


def _encode(vae: VAE, batches: Iterable[Any]) -> Codes:
    posteriors, labels = [], []
    for batch in batches:
        posteriors.append(vae.latent.posterior(vae.encoder(images_of(batch))))
        labels.append(labels_of(batch))
    return joined(posteriors, labels)
