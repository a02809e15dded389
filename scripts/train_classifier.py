"""Train the Fashion-MNIST classifier in whose features Fréchet distances are measured.

    python scripts/train_classifier.py FOLDER --out FILE

FOLDER holds the four official files, plain or compressed by gzip. The network learns from the first 55,000 training
images; the last 5,000 tell how well while it learns, and the 10,000 test images once, at the end. The weights go to
FILE as safetensors, with the accuracies beside them. Weights of another training give other distances: whoever ships
new ones gives them a new name, and `vae_lab/model/classifier.py` their checksum.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import RandomCrop

from vae_lab.data import ImageData
from vae_lab.model.classifier import Classifier

DATA = {
    "dataset": "torchvision.datasets.FashionMNIST",
    "image_shape": [1, 28, 28],
    "train_images": 60000,
    "test_images": 10000,
    "num_train": 55000,
    "num_val": 5000,
    "num_test": 10000,
    "subset": "first",
    "subset_seed": 0,
}


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """The fraction of images that are classified correctly."""
    classifier.eval()
    found = [classifier(batch / 255).argmax(1) for batch in images.split(1000)]
    return (torch.cat(found) == labels).float().mean().item()


def train(data: ImageData, epochs: int, batch_size: int, learning_rate: float) -> Classifier:
    """Train with AdamW, a one-cycle learning rate, flipped and shifted images, and smoothed labels."""
    images, labels = data.splits["train"]
    classifier = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.02)
    steps = epochs * -(-len(images) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    shift = RandomCrop(28, padding=2)
    for epoch in range(epochs):
        started = time.perf_counter()
        classifier.train()
        for indices in torch.randperm(len(images)).split(batch_size):
            batch = shift(images[indices] / 255)
            flipped = torch.rand(len(batch)) < 0.5
            batch[flipped] = batch[flipped].flip(-1)
            loss = loss_of(classifier(batch.contiguous(memory_format=torch.channels_last)), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: {accuracy(classifier, *data.splits['val']):.4f} in {seconds:.0f} s", flush=True)
    return classifier.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", help="folder of the official files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the weights go")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    data = ImageData(**DATA, root=given.source, batch_size=given.batch_size)
    data.setup()
    classifier = train(data, given.epochs, given.batch_size, given.learning_rate)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in classifier.state_dict().items()}
    save_file(weights, given.out, metadata={"format": "1"})
    figures = {
        "accuracy": {split: round(accuracy(classifier, *data.splits[split]), 4) for split in ("train", "val", "test")},
        "sha256": hashlib.sha256(given.out.read_bytes()).hexdigest(),
        "parameters": sum(weight.numel() for weight in classifier.parameters()),
        "epochs": given.epochs,
        "seed": given.seed,
        "torch": torch.__version__,
    }
    given.out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
