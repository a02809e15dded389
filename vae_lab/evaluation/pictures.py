"""Image quality: reconstructions from the posterior's mean, and samples."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vae_lab.data.batches import images_of, labels_of
from vae_lab.evaluation.batches import Codes, generator_for, in_double, joined
from vae_lab.model.classifier import Classifier
from vae_lab.model.vae import VAE

ROWS, PART = 500, 125
"""Samples that are drawn and counted at once, and samples that are decoded at once, which needs more memory."""

SMALLEST_SSIM = 11
"""The smallest height and width of an image into which SSIM's window fits (Wang et al. 2004)."""


Draw = Callable[[int, torch.Generator], Float[Tensor, "n ..."]]
"""Draws a given number of z, flattened or not, from a generator on the CPU."""


class Reconstructed(NamedTuple):
    """The test images after the model."""

    codes: Codes
    figures: dict[str, Any]
    squared_errors: Float[Tensor, " n"]
    """Of each image, the mean over its pixels."""


def reconstruct(
    vae: VAE,
    test: Iterable[Any],
    classifier: Classifier | None,
    draws: Mapping[str, Draw],
    others: Iterable[Any] = (),
) -> Reconstructed:
    """Encode and reconstruct the test images, and measure reconstructions from the posterior's mean and samples.

    Args:
        vae: the model.
        test: batches of test images.
        classifier: Fréchet distances compare its features; None computes no distances.
        draws: name of a set of samples → the function that draws their z.
        others: batches of further real images. `fid_floor` is the distance of as many of them as there are test images.
    """
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    quality: dict[str, Any] = {}
    parameters, labels, squared = [], [], []
    sets = ("reconstructions", *draws, "floor")
    distances = {name: FrechetDistance(classifier.num_features) for name in sets} if classifier else {}
    channels = ConstantChannels(vae)
    # Not synchronised across processes: the first process measures all images.
    with channels:
        for batch in test:
            images = images_of(batch)
            parameters.append(vae.encoder(images))
            labels.append(labels_of(batch))
            reconstructions = vae.likelihood(vae.decoder(vae.posterior(parameters[-1]).mean)).mean.to(images.dtype)
            if not quality:
                quality["psnr"] = PeakSignalNoiseRatio(
                    (0.0, 1.0), reduction="elementwise_mean", dim=(1, 2, 3), sync_on_compute=False
                )
                if min(images.shape[2:]) >= SMALLEST_SSIM:
                    quality["ssim"] = StructuralSimilarityIndexMeasure(data_range=(0.0, 1.0), sync_on_compute=False)
                quality = {name: metric.to(images.device) for name, metric in quality.items()}
            for metric in quality.values():
                metric.update(reconstructions, images)
            squared.append(in_double(reconstructions - images).square().flatten(1).mean(1))
            if classifier:
                _add(distances.values(), _features(classifier, images), real=True)
                _add([distances["reconstructions"]], classifier.features(reconstructions.float()), real=False)
    errors = torch.cat(squared)
    count = len(errors)
    figures: dict[str, Any] = {"mse": errors.mean().item()}
    figures |= {name: one.compute().item() for name, one in quality.items()}
    figures["dead_units"] = channels.dead() if count > 1 else None
    for name, draw in draws.items():
        if classifier is None:
            break
        generator = generator_for(name)
        for rows in torch.split(torch.arange(count), ROWS):
            z = draw(len(rows), generator).to(images).reshape(-1, *vae.latent_shape)
            features = [
                classifier.features(vae.likelihood(vae.decoder(part)).mean.float()) for part in torch.split(z, PART)
            ]
            _add([distances[name]], torch.cat(features), real=False)
    if classifier:
        missing = count
        for batch in others:
            images = images_of(batch)[:missing]
            _add([distances["floor"]], _features(classifier, images), real=False)
            missing -= len(images)
            if not missing:
                break
    figures |= {f"fid_{name}": distance.value() for name, distance in distances.items()}
    if figures.get("fid_floor") is not None and missing:
        figures["fid_floor"] = None  # it depends on their number
    return Reconstructed(joined(vae, parameters, labels), figures, errors)


def _features(classifier: Classifier, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
    # The classifier's own layout; reconstructions come in it.
    return classifier.features(images.float().to(memory_format=torch.channels_last))


def _add(distances: Iterable["FrechetDistance"], features: Tensor, *, real: bool) -> None:
    for distance in distances:
        distance.add(features, real=real)


class FrechetDistance:
    """Fréchet distance between two sets of images in the features of a classifier (Heusel et al. 2017).

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), of the means and covariances of the features. The distance depends
    on the network that gives the features, and on the number of images.
    """

    def __init__(self, num_features: int) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        features: Any = nn.Identity()  # computed outside, so that each image is processed once
        features.num_features = num_features
        self._metric = FrechetInceptionDistance(features, sync_on_compute=False)

    def add(self, features: Float[Tensor, "b f"], *, real: bool) -> None:
        """Add images to the real or the generated set."""
        features = in_double(features)
        self._metric.to(features.device).update(features, real=real)

    def value(self) -> float | None:
        """The distance; None if a set has fewer than two images."""
        if min(self._metric.real_features_num_samples, self._metric.fake_features_num_samples) < 2:
            return None
        return max(0.0, float(self._metric.compute()))  # rounding can make it negative


class ConstantChannels:
    """Watches a model's activations for channels or features that are equal for all images and positions."""

    def __init__(self, model: nn.Module) -> None:
        layers = (layer for layer in model.modules() if type(layer).__module__ == "torch.nn.modules.activation")
        self.layers = [layer for layer in layers if not isinstance(layer, nn.MultiheadAttention)]
        self._limits: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(self._update) for layer in self.layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _update(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            return
        flat = output.detach().transpose(0, 1).flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        if id(layer) in self._limits:
            before = self._limits[id(layer)]
            if before[0].shape != low.shape:  # a layer that is used twice
                return
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._limits[id(layer)] = (low, high)

    def dead(self) -> int:
        return sum(int((low == high).sum()) for low, high in self._limits.values())
