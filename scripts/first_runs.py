"""Odd image folders and odd settings: what passes the checks before the first run also trains."""

import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from altered import in_child
from PIL import Image

TINY = (
    "name=first", "latent.dim=3", "encoder.blocks=[{down:4},{down:4}]", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]",
    "trainer.threads=1", "callbacks=quiet", "logger=csv", "metrics.frechet=false",
)  # fmt: skip
FOLDER = ("data=image_folder", "data.root=images", "data.num_train=12", "data.num_val=6", "data.num_test=6",
          "data.batch_size=6", "data.image_shape=[3,16,16]", "data.workers=0", "trainer.max_epochs=1")  # fmt: skip

# --- Image folders -----------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, ...]] = {
    "flat": ("",), "classes": ("cat", "dog"), "nested": ("cat/young", "cat/old", "dog"),
    "splits": ("train", "val", "test"), "split classes": ("train/cat", "train/dog", "val/cat", "test/dog"),
}  # fmt: skip
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr")
ENDINGS = {
    "RGB": ("png", "jpg", "bmp", "webp", "tif", "gif"), "RGBA": ("png", "webp", "tif"), "L": ("png", "jpg", "pgm"),
    "LA": ("png",), "P": ("png", "gif"), "1": ("png", "pbm", "tif"), "CMYK": ("jpg", "tif"), "I;16": ("png", "tif"),
    "I": ("tif",), "F": ("tif",), "YCbCr": ("jpg",),
}  # fmt: skip


def picture(chance: random.Random, path: Path, mode: str = "RGB") -> None:
    """Write an image of a mode, of a random size and with random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = chance.choice([(16, 16), (20, 30), (1, 1), (7, 64)])
    noise = np.random.default_rng(chance.randrange(2**32))
    ending = chance.choice(ENDINGS[mode])
    if mode in ("I;16", "I", "F"):
        largest = {"I;16": 2**16 - 1, "I": 2**31 - 1, "F": chance.choice([1.0, 255.0, 1e9])}[mode]
        values = noise.random((height, width)) * largest
        image = Image.fromarray(values.astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode]))
    else:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = chance.randrange(9)  # the orientation; 0 is none of them
    image.save(path.with_suffix(f".{ending}"), **({"exif": exif} if ending in ("jpg", "webp") else {}))


def folder_of_images(chance: random.Random, root: Path) -> None:
    """Write a sound folder of images."""
    places = LAYOUTS[chance.choice([*LAYOUTS])]
    for number in range(48):
        picture(chance, root / places[number % len(places)] / f"{number:02}")


def _some(chance: random.Random, root: Path) -> Path:
    return chance.choice(sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()))


def _cut(chance: random.Random, root: Path) -> None:
    path = _some(chance, root)
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def _bytes(chance: random.Random, root: Path) -> None:
    path = _some(chance, root)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 10, 100])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def _bomb(chance: random.Random, root: Path) -> None:
    Image.new("1", chance.choice([(30_000, 30_000), (100_000, 3)])).save(_some(chance, root).with_suffix(".png"))


def _replaced(chance: random.Random, root: Path) -> None:
    path = _some(chance, root)
    path.unlink()
    match chance.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.mkdir()
        case 4:
            path.write_text("no image")


def _links(chance: random.Random, root: Path) -> None:
    for number in range(chance.choice([1, 5])):
        (_some(chance, root).parent / f"link{number}").symlink_to(chance.choice([root, Path(), _some(chance, root)]))


def _beside(chance: random.Random, root: Path) -> None:
    for name in chance.sample(
        ["Thumbs.db", ".DS_Store", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "labels.csv", "a.txt", "more/a.png",
         "B\u202eb.png", "-rf.png", "a b\n.png", "ä/ö.png", "x" * 200 + ".png"], 3,
    ):  # fmt: skip
        path = chance.choice([root, _some(chance, root).parent]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_some(chance, root), path)


def _modes(chance: random.Random, root: Path) -> None:
    for number in range(chance.choice([1, 20])):
        picture(chance, _some(chance, root).parent / f"of_a_mode_{number}", chance.choice(MODES))


def _fewer(chance: random.Random, root: Path) -> None:
    for _ in range(chance.choice([20, 30, 48])):
        if any(path.is_file() for path in root.rglob("*")):
            _some(chance, root).unlink()


def _again(chance: random.Random, root: Path) -> None:
    path = _some(chance, root)
    os.link(path, path.with_name(f"again_{path.name}"))


CHANGES: tuple[Callable[[random.Random, Path], None], ...] = (
    _cut, _bytes, _bomb, _replaced, _links, _beside, _modes, _fewer, _again
)  # fmt: skip

# --- Settings ----------------------------------------------------------------------------------------------

SETTINGS: tuple[tuple[str, ...], ...] = (
    ("data.num_train=1", "data.num_train=7", "data.num_train=20", "data.num_train=41"),
    ("data.num_val=0", "data.num_val=1", "data.num_val=9"),
    ("data.num_test=0", "data.num_test=1", "data.num_test=9"),
    ("data.batch_size=1", "data.batch_size=2", "data.batch_size=8", "data.batch_size=1000"),
    ("data.binarize=static", "data.binarize=dynamic", "data.binarize=threshold", "data.subset=stratified"),
    ("trainer.max_epochs=1", "trainer.max_epochs=2", "trainer.max_epochs=3"),
    ("+trainer.max_steps=1", "+trainer.max_steps=5", "+trainer.max_steps=0", "+trainer.max_time=00:00:00:01"),
    ("+trainer.accumulate_grad_batches=3", "+trainer.accumulate_grad_batches=100"),
    ("+trainer.overfit_batches=1", "+trainer.limit_train_batches=0.5", "+trainer.limit_train_batches=0"),
    ("+trainer.limit_val_batches=0", "+trainer.limit_test_batches=0", "+trainer.fast_dev_run=true"),
    ("+trainer.check_val_every_n_epoch=2", "+trainer.val_check_interval=1", "+trainer.val_check_interval=0.25"),
    ("+trainer.gradient_clip_val=1e-3", "+trainer.gradient_clip_val=0", "+trainer.detect_anomaly=true"),
    ("trainer.precision=64-true", "trainer.precision=bf16-true", "trainer.precision=16-mixed"),
    ("scheduler=constant", "scheduler=cosine", "scheduler=null", "scheduler.pct_start=1.0", "scheduler.pct_start=0",
     "scheduler={_target_:torch.optim.lr_scheduler.ReduceLROnPlateau}",
     "scheduler={_target_:torch.optim.lr_scheduler.StepLR,step_size:1}"),
    ("optimizer=adamw", "optimizer.lr=1e10", "optimizer.lr=0", "optimizer.betas=[0,0]",
     "optimizer={_target_:torch.optim.SGD,lr:0.1}", "optimizer={_target_:torch.optim.LBFGS,lr:0.1}",
     "optimizer={_target_:torch.optim.SparseAdam,lr:0.1}"),
    ("objective=elbo", "objective=iwae", "objective=mmd", "objective=rae posterior=point", "objective=dip",
     "objective=beta_tc", "objective=elbo objective.schedule=cyclical", "objective.beta=0", "objective.beta=1e30"),
    ("posterior=full", "posterior=flow", "posterior=point", "posterior.log_variance=null"),
    ("prior=mixture", "prior=vamp", "prior=flow", "prior=mixture prior.components=1"),
    ("likelihood=bernoulli", "likelihood=continuous_bernoulli", "likelihood=logistic", "likelihood.sigma=learned",
     "likelihood.sigma=1e-30", "likelihood.sigma=per_pixel"),
    ("++callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/total}",
     "++callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:nothing}",
     "++callbacks.swa={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.001}",
     "++callbacks.a={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,scheduling:{0:2,1:3}}",
     "++callbacks.b={_target_:lightning.pytorch.callbacks.BatchSizeFinder}",
     "++callbacks.l={_target_:lightning.pytorch.callbacks.LearningRateFinder}"),
    ("+test_weights=best", "metrics=full", "metrics.samplers=true", "match=parameters", "match=flops"),
    ("encoder=mlp", "encoder=attention", "decoder=resize", "encoder=resnet", "latent.dim=1", "latent.dim=300"),
)  # fmt: skip
"""Groups of words; a command has at most one word of each group."""


# --- The command -------------------------------------------------------------------------------------------


def image_folders(place: Path, count: int, seed: int) -> dict[str, Any]:
    """Train on `count` folders of images, each altered in up to three ways."""

    def words(chance: random.Random, folder: Path) -> list[str]:
        root = folder / "images"
        folder_of_images(chance, root)
        for change in chance.choices(CHANGES, k=chance.randrange(4)):
            if any(path.is_file() and not path.is_symlink() for path in root.rglob("*")):
                change(chance, root)
        return [*FOLDER]

    return _trained(place / "images", count, seed, words)


def settings(place: Path, count: int, seed: int) -> dict[str, Any]:
    """Train with `count` random sets of settings."""

    def words(chance: random.Random, folder: Path) -> list[str]:
        base = ["data.num_train=20", "data.num_val=10", "data.num_test=10", "data.batch_size=5", "trainer.max_epochs=2"]
        chosen = [chance.choice(group) for group in chance.sample(SETTINGS, chance.randint(1, 4))]
        return [*base, *(word for some in chosen for word in some.split(" "))]

    return _trained(place / "settings", count, seed, words)


def _trained(place: Path, count: int, seed: int, words: Callable[[random.Random, Path], list[str]]) -> dict[str, Any]:
    """Train in a new folder for each case: it trains, or nothing was run, or its loss was not finite."""
    codes: Counter[str] = Counter()
    broken = []
    for case in range(count):
        chance = random.Random(f"{seed}/{case}")
        folder = place / "case"
        folder.mkdir(parents=True)
        line = words(chance, folder)
        code, output, _, memory = in_child(["train", *TINY, *line], folder)
        runs = [json.loads(path.read_text()) for path in folder.glob("outputs/**/result.json")]
        kind = "trained"
        if code == 1:
            kind = "refused" if not (folder / "outputs").exists() else "diverged"
        codes[kind] += 1
        fine = {
            "trained": code == 0 and len(runs) == 1 and math.isfinite(runs[0]["train"]["total"]),
            "refused": "Nothing was run:" in output,
            "diverged": any("LossError" in str(run["error"]) or "not finite" in str(run["error"]) for run in runs),
        }[kind]
        if not fine or "Traceback" in output or memory > 2**30:
            broken.append({"case": case, "words": line, "code": code, "memory": memory, "said": output[-1500:]})
        shutil.rmtree(place)
    return {"cases": count, "codes": dict(sorted(codes.items())), "broken": broken}
