"""A small Fashion-MNIST classifier, whose last hidden layer is what Fréchet distances and a perceptual loss compare."""

import hashlib
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_lab.config import PACKAGE
from vae_lab.model.blocks.layers import in_32_bits

CLASSIFIER = PACKAGE / "assets" / "fashion_mnist_classifier" / "v1.safetensors"
SHA256 = "0acb4cb48604e97b132874572d9bdddb40c01d2dcf9120b111bd2f6af9c0e7ff"


class ClassifierError(ValueError):
    """The classifier's weights are missing or do not belong to this version."""


class Classifier(nn.Module):
    """Classify images of clothes; the last hidden layer has `num_features` features.

    Four convolutions, an average over the map, and two dense layers; `scripts/train_classifier.py` trains it.
    """

    num_features = 64

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.map = nn.Sequential(
            *_convolution(1, 32, stride=2),
            *_convolution(32, 64),
            *_convolution(64, 64, stride=2),
            *_convolution(64, 128),
        )
        self.dense = nn.Sequential(nn.Linear(128, self.num_features), nn.GELU())
        self.head = nn.Linear(self.num_features, classes)

    def features(self, images: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b f"]:
        """The outputs of the last hidden layer, for images with values in [0, 1]."""
        return self.dense(self.map(images - 0.5).mean((2, 3)))

    def forward(self, images: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b classes"]:
        """Log-odds of the classes, in the order of Fashion-MNIST's labels."""
        return self.head(self.features(images))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.GELU()]


def load_classifier(path: Path = CLASSIFIER) -> Classifier:
    """The classifier that ships with the package, in evaluation mode.

    Raises:
        ClassifierError: if its weights are missing or have a wrong checksum: distances between other features cannot
            be compared.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ClassifierError(f"{path}: the classifier's weights cannot be read ({error.strerror})") from error
    if found != SHA256:
        raise ClassifierError(
            f"{path}: not the weights of this version, their SHA-256 begins {found[:16]}, not {SHA256[:16]}; "
            "put them back: git checkout the file, or install vae_lab again"
        )
    with torch.device("meta"):
        classifier = Classifier()
    classifier.load_state_dict(load_file(path), assign=True)
    return classifier.eval().requires_grad_(False)


@cache
def _on(device: torch.device) -> Classifier:
    with torch.inference_mode(False):  # validation may be the first to ask, and training uses it later
        return load_classifier().to(device)


def squared_feature_distance(
    reconstructions: Float[Tensor, "b 1 28 28"], images: Float[Tensor, "b 1 28 28"]
) -> Float[Tensor, ""]:
    """‖f(x̂) − f(x)‖² for the classifier's features f, averaged over images; computed in 32 bits.

    Raises:
        ClassifierError: if the classifier's weights are missing.
    """
    classifier = _on(images.device)
    with in_32_bits(images.device):
        with torch.no_grad():
            wanted = classifier.features(images.float())
        return (classifier.features(reconstructions.float()) - wanted).square().sum(1).mean()
