"""Held-out quality: how well a model explains unseen images, what it keeps in its latent space, how its images look.

Figures in nats are those of the Gaussian likelihood that β stands for, N(x̂, σ²·1) with σ² = β·D / (2·Z), its constant
included.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from vae_lab.config import Config, MetricsConfig
from vae_lab.features import Classifier, fits, load_classifier
from vae_lab.latent import Gaussian, Posterior
from vae_lab.module import images_of
from vae_lab.vae import VAE

ACTIVE = 0.01
"""A latent dimension is active if its posterior mean varies by more than this over the images (Burda et al. 2016)."""

MOST_KL = 10.0
"""Nats a latent dimension, on average, above which the KL divergence is told to explode.

A dimension that carries them is read to one part in 20,000: no decoder needs that.
"""

SEED = 20150901
"""Start of the streams of z that the metrics draw, the same for every run."""

ROWS = 500
"""Images whose z is held against all posteriors at once, and samples that are decoded at once."""

SMALLEST_SSIM = 11
"""Height and width from which on an image holds a window of SSIM's (Wang et al. 2004)."""


class Codes(NamedTuple):
    """What the encoder makes of a split: the mean of each image's posterior, and its class where there is one."""

    mean: Float[Tensor, "n z"]
    posterior: Posterior | None
    """None for a latent space of another class, whose posteriors are not Gaussians with diagonal covariance."""
    labels: Int[Tensor, " n"] | None


def measure(
    vae: VAE,
    data: LightningDataModule,
    settings: Config,
    asked: MetricsConfig,
    losses: Mapping[str, float],
) -> dict[str, Any]:
    """The test metrics of a trained model by the names that `result.json` has them under; None for what cannot be had.

    The model is used in evaluation mode, in 32 bits, on the device that it is on, and left in the mode it was in.

    Args:
        vae: the model.
        data: gives the test images by `test_dataloader`, for the probe also training images and labels.
        settings: the run's configuration.
        asked: which metrics.
        losses: `reconstruction` and `kl` of the test.
    """
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            return _measure(vae, data, settings, asked, losses)
    finally:
        vae.train(training)


def _measure(
    vae: VAE, data: LightningDataModule, settings: Config, asked: MetricsConfig, losses: Mapping[str, float]
) -> dict[str, Any]:
    place = next(vae.parameters(), torch.empty(0))
    limit = (settings.trainer.model_extra or {}).get("limit_test_batches")
    test = _Batches(data, data.test_dataloader(), place, limit)
    variance = settings.likelihood_variance
    classifier = load_classifier().to(place.device) if asked.frechet and fits(settings.data) else None
    figures: dict[str, Any] = {}
    if variance is not None:
        figures["elbo"] = elbo(losses, variance, math.prod(settings.data.image_shape), settings.latent_dim)
    codes, pictures = _reconstruct(vae, test, classifier)
    figures |= pictures
    if codes.posterior is not None:
        figures |= use_of_latent(vae.latent, codes.posterior)
    if variance is not None and asked.iwae and isinstance(vae.latent, Gaussian):
        figures |= _bounds(vae, test, variance, asked.iwae, math.prod(settings.data.image_shape))
    if asked.probe and codes.labels is not None:
        figures["probe_accuracy"] = _probe(vae, data, place, codes)
    return figures


class _Batches:
    """A loader's batches as the trainer gives them to a model, as many as it tests on; each pass gives the same ones.

    Args:
        data: whose hooks the batches pass through.
        loader: where they come from.
        place: a tensor of the device and the type that the model takes.
        limit: how many, or which share of them; None for all.
    """

    def __init__(self, data: LightningDataModule, loader: Any, place: Tensor, limit: float | None = None) -> None:
        self.data = data
        self.loader = loader
        self.place = place
        if isinstance(limit, float):  # a loader may not know its length
            limit = None if limit == 1 else int(len(loader) * limit)
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        for given in itertools.islice(iter(self.loader), self.limit):
            batch = self.data.on_before_batch_transfer(given, 0)
            batch = self.data.transfer_batch_to_device(batch, self.place.device, 0)
            batch = self.data.on_after_batch_transfer(batch, 0)
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
            yield tuple(self._moved(part) if isinstance(part, Tensor) else part for part in parts)

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.place) if part.is_floating_point() else part.to(self.place.device)


def labels_of(batch: Any) -> Int[Tensor, " b"] | None:
    """The classes of a batch of images and classes; None where there are none."""
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    whole = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels if whole else None


# --- The likelihood of unseen images -----------------------------------------------------------------------


def elbo(losses: Mapping[str, float], variance: float, pixels: int, latent_dim: int) -> float:
    """The evidence lower bound in nats an image that the mean losses of a data set amount to (Kingma & Welling 2014).

    E[log p(x|z)] − KL(q(z|x) ‖ p(z)), one z an image: −(D/2)·(reconstruction/σ² + ln 2πσ²) − Z·kl.

    Args:
        losses: `reconstruction` (mean squared error) and `kl` (nats a latent dimension).
        variance: σ² of the Gaussian likelihood.
        pixels: D, channels times height times width.
        latent_dim: Z.
    """
    expected = -0.5 * pixels * (losses["reconstruction"] / variance + math.log(2 * math.pi * variance))
    return expected - latent_dim * losses["kl"]


def log_likelihood(
    images: Float[Tensor, "b c h w"], means: Float[Tensor, "b c h w"], variance: float
) -> Float64[Tensor, " b"]:
    """Log N(x; x̂, σ²·1) of each image in nats."""
    squared = _double(images - means).square().flatten(1).sum(1)
    return -0.5 * (squared / variance + images[0].numel() * math.log(2 * math.pi * variance))


def importance_weighted(
    vae: VAE,
    images: Float[Tensor, "b c h w"],
    variance: float,
    counts: Sequence[int],
    generator: torch.Generator,
) -> dict[int, Float64[Tensor, " b"]]:
    """Importance-weighted bounds of each image in nats, by their number of samples k (Burda et al. 2016).

    log (1/k) Σᵢ p(x, zᵢ) / q(zᵢ|x), zᵢ ~ q(z|x). k = 1 is the evidence lower bound. All bounds share the samples of the
    largest one; a smaller k takes them in groups and averages over these. One sample is held at a time, so that memory
    does not grow with k.
    """
    latent = vae.latent
    posterior = latent.posterior(vae.encoder(images))
    exact = Posterior(*map(_double, posterior))
    sums = {k: exact.mean.new_zeros(len(images)) for k in counts}
    running = {k: torch.full_like(sums[k], -math.inf) for k in counts}
    for sample in range(1, max(counts) + 1):
        z = latent.sample(posterior, _noise(len(images), latent.dim, generator).to(images.device))
        weight = (
            log_likelihood(images, vae.decoder(z), variance)
            + latent.log_prior(_double(z))
            - latent.log_posterior(exact, _double(z))
        )
        for k in counts:
            running[k] = torch.logaddexp(running[k], weight)
            if sample % k == 0:
                sums[k] += running[k] - math.log(k)
                running[k] = torch.full_like(running[k], -math.inf)
    return {k: sums[k] / (max(counts) // k) for k in counts}


def _bounds(
    vae: VAE, test: Iterable[Any], variance: float, counts: Sequence[int], pixels: int
) -> dict[str, float | None]:
    generator = _generator("iwae")
    found: dict[int, list[Tensor]] = {k: [] for k in counts}
    for batch in test:
        for k, bound in importance_weighted(vae, images_of(batch), variance, counts, generator).items():
            found[k].append(bound)
    figures: dict[str, float | None] = {f"iwae_{k}": torch.cat(bounds).mean().item() for k, bounds in found.items()}
    if 100 in found:
        figures["bits_per_dim"] = 8 - float(figures["iwae_100"] or 0) / (pixels * math.log(2))
    return figures


# --- The latent space --------------------------------------------------------------------------------------


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
    kl = _double(latent.kl(posterior)).mean(0)
    figures: dict[str, Any] = {
        "kl_per_dimension": kl.tolist(),
        "active_units": int((_double(posterior.mean).var(0) > ACTIVE).sum()) if len(posterior.mean) > 1 else None,
    }
    if isinstance(latent, Gaussian) and len(posterior.mean) > 1:
        information, divergence = aggregate_bounds(latent, posterior, _generator("aggregate"))
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
    posterior = Posterior(*map(_double, posterior))
    count = len(posterior.mean)
    z = latent.sample(posterior, _noise(count, latent.dim, generator).to(posterior.mean))
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


def _probe(vae: VAE, data: LightningDataModule, place: Tensor, test: Codes) -> float | None:
    train = _encode(vae, _Batches(data, labelled_training_images(data), place))
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
        probe.fit(_double(codes).cpu().numpy(), labels.cpu().numpy())
    return float(probe.score(_double(test_codes).cpu().numpy(), test_labels.cpu().numpy()))


def _encode(vae: VAE, batches: Iterable[Any]) -> Codes:
    posteriors, labels = [], []
    for batch in batches:
        posteriors.append(vae.latent.posterior(vae.encoder(images_of(batch))))
        labels.append(labels_of(batch))
    return _joined(posteriors, labels)


def _joined(posteriors: Sequence[Any], labels: Sequence[Tensor | None]) -> Codes:
    known = [one for one in labels if one is not None]
    gaussian = all(isinstance(one, Posterior) for one in posteriors)
    return Codes(
        torch.cat([one.mean for one in posteriors]),
        Posterior(*(torch.cat(parts) for parts in zip(*posteriors, strict=True))) if gaussian else None,
        torch.cat(known) if len(known) == len(labels) else None,
    )


# --- The images --------------------------------------------------------------------------------------------


def _reconstruct(vae: VAE, test: Iterable[Any], classifier: Classifier | None) -> tuple[Codes, dict[str, Any]]:
    """Posteriors of the test images, and how their reconstructions through the posterior's mean look."""
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    quality: dict[str, Any] = {}
    posteriors, labels, squared, count = [], [], 0.0, 0
    sets = ("reconstructions", *(("samples",) if hasattr(vae.latent, "sample_prior") else ()))
    distances = {name: FrechetDistance(classifier.num_features) for name in sets} if classifier else {}
    channels = ConstantChannels(vae)
    with channels:
        for batch in test:
            images = images_of(batch)
            posteriors.append(vae.latent.posterior(vae.encoder(images)))
            labels.append(labels_of(batch))
            noise = torch.zeros(len(images), vae.latent.dim, device=images.device)
            reconstructions = vae.decoder(vae.latent.sample(posteriors[-1], noise)).to(images.dtype)
            if not quality:
                quality["psnr"] = PeakSignalNoiseRatio((0.0, 1.0), reduction="elementwise_mean", dim=(1, 2, 3))
                if min(images.shape[2:]) >= SMALLEST_SSIM:
                    quality["ssim"] = StructuralSimilarityIndexMeasure(data_range=(0.0, 1.0))
                quality = {name: metric.to(images.device) for name, metric in quality.items()}
            for metric in quality.values():
                metric.update(reconstructions, images)
            squared += _double(reconstructions - images).square().flatten(1).mean(1).sum().item()
            count += len(images)
            if classifier:
                _add(distances.values(), classifier.features(images.float()), real=True)
                _add([distances["reconstructions"]], classifier.features(reconstructions.float()), real=False)
    figures: dict[str, Any] = {"mse": squared / count} | {name: one.compute().item() for name, one in quality.items()}
    figures["dead_units"] = channels.dead() if count > 1 else None
    if classifier and "samples" in distances:
        generator = _generator("samples")
        for rows in torch.split(torch.arange(count), ROWS):
            z = vae.latent.sample_prior(len(rows), generator).to(images)
            _add([distances["samples"]], classifier.features(vae.decoder(z).float()), real=False)
    figures |= {f"fid_{name}": distance.value() for name, distance in distances.items()}
    return _joined(posteriors, labels), figures


def _add(distances: Iterable["FrechetDistance"], features: Tensor, *, real: bool) -> None:
    for distance in distances:
        distance.add(features, real=real)


class FrechetDistance:
    """Fréchet distance between two sets of images in the features of a classifier (Heusel et al. 2017).

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), of the means and covariances of the features. Features of another network
    give other numbers, and so do other numbers of images.
    """

    def __init__(self, num_features: int) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        features: Any = nn.Identity()  # not Inception's: they come from outside, so that each image is looked at once
        features.num_features = num_features
        self._metric = FrechetInceptionDistance(features)

    def add(self, features: Float[Tensor, "b f"], *, real: bool) -> None:
        """Count images to the one set or the other."""
        features = _double(features)
        self._metric.to(features.device).update(features, real=real)

    def value(self) -> float | None:
        """The distance; None where a set has fewer than two images."""
        if min(self._metric.real_features_num_samples, self._metric.fake_features_num_samples) < 2:
            return None
        return max(0.0, float(self._metric.compute()))  # rounding can make it negative


class ConstantChannels:
    """Watches the activations of a model: which channels or features are the same for all images and places."""

    def __init__(self, model: nn.Module) -> None:
        layers = (layer for layer in model.modules() if type(layer).__module__ == "torch.nn.modules.activation")
        self.layers = [layer for layer in layers if not isinstance(layer, nn.MultiheadAttention)]
        self._limits: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(self._see) for layer in self.layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            return
        flat = output.detach().transpose(0, 1).flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        if id(layer) in self._limits:
            before = self._limits[id(layer)]
            if before[0].shape != low.shape:  # one layer in two places
                return
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._limits[id(layer)] = (low, high)

    def dead(self) -> int:
        return sum(int((low == high).sum()) for low, high in self._limits.values())


# --- Random streams ----------------------------------------------------------------------------------------


def _generator(purpose: str) -> torch.Generator:
    """A stream of its own for each figure, so that asking for one more changes none of the others."""
    from vae_lab.data import derived_seed

    return torch.Generator().manual_seed(derived_seed(SEED, purpose))


def _noise(count: int, dim: int, generator: torch.Generator) -> Float[Tensor, "b z"]:
    """Standard normal, drawn on the CPU, so that the stream is the same on every device."""
    return torch.randn(count, dim, generator=generator)


def _double(values: Tensor) -> Tensor:
    """The values in 64 bits, where they are or, for a device that has no such numbers, on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


# --- What is wrong with a model ----------------------------------------------------------------------------


def symptoms(figures: Mapping[str, Any], kl: Mapping[int, float]) -> list[str]:
    """What is wrong with a model, as `kind: sentence`: posterior collapse, dead dimensions or units, an exploding KL.

    Args:
        figures: what `measure` gave.
        kl: epoch → nats a latent dimension.
    """
    found = []
    dimensions, active = len(figures.get("kl_per_dimension") or ()), figures.get("active_units")
    if dimensions and active == 0:
        found.append(
            f"posterior collapse: none of the {dimensions} latent dimensions is active, so the decoder ignores the "
            "image; a lower objective.beta or a weaker decoder may help"
        )
    elif dimensions and active is not None and active < dimensions:
        found.append(
            f"dead latent dimensions: the posterior means of {dimensions - active} of {dimensions} have a variance of "
            f"no more than {ACTIVE} over the test images"
        )
    if figures.get("dead_units"):
        found.append(
            f"dead units: {figures['dead_units']} channels have the same activation for every test image; another "
            "activation or a lower optimizer.lr may help"
        )
    if kl and max(kl.values()) > MOST_KL:
        found.append(exploding(*max(kl.items(), key=lambda one: one[1])))
    return found


def exploding(epoch: int, kl: float) -> str:
    """The sentence about an epoch whose KL divergence is out of proportion."""
    return (
        f"exploding KL: {kl:.4g} nats a latent dimension in epoch {epoch} (more than {MOST_KL:g}); a lower "
        "optimizer.lr or trainer.gradient_clip_val may help"
    )
