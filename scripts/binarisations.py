"""How much the bound of a run hangs on the binarisation of its images: `python scripts/binarisations.py FOLDER`.

Validation and test images are binarised once more, by other seeds. Each row has the mean bound and its standard error
over the images, in nats. docs/published.md has the figures.
"""

import argparse
from pathlib import Path

import torch

import vae_lab
from vae_lab.config import Config
from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import HeldOutBatches, generator_for
from vae_lab.evaluation.likelihood import importance_weighted
from vae_lab.evaluation.runs import open_images
from vae_lab.results import read_config


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run with data.binarize, of your own: its images are read")
    parser.add_argument("--samples", type=int, default=30, metavar="K", help="of the posterior (30)")
    parser.add_argument("--draws", type=int, default=4, metavar="N", help="binarisations (4)")
    given = parser.parse_args()
    settings = Config.model_validate(read_config(given.folder))
    model = vae_lab.load(given.folder)
    like = next(model.parameters())
    torch.set_num_threads(settings.trainer.threads)
    for seed in range(given.draws):
        changed = settings.data.model_copy(update={"binarize_seed": seed})
        data = open_images(given.folder, settings.model_copy(update={"data": changed}), "fit", "test")
        for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
            bounds = []
            with torch.inference_mode():
                for index, batch in enumerate(HeldOutBatches(data, loader, like)):
                    stream = generator_for("iwae", index)
                    found = importance_weighted(model, images_of(batch), [given.samples], stream)
                    bounds.append(found[f"iwae_{given.samples}"])
            whole = torch.cat(bounds)
            error = whole.std() / len(whole) ** 0.5
            print(f"binarize_seed {seed}, {split}: {whole.mean():.3f}, standard error {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
