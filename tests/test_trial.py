"""One step of everything before the first run: what every run would fail of is refused, and nothing is left behind."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vae_lab.config import ConfigError
from vae_lab.training import runner, trial

SMALL = (
    "name=trial", "latent.dim=4", "data.num_train=40", "data.num_val=20", "data.num_test=20", "data.batch_size=20",
    "trainer.max_epochs=3", "trainer.threads=1", "trainer.precision=32-true", "encoder.blocks=[{down:4},{down:4}]",
    "decoder.blocks=[{unflatten:4},{up:4},{up:4}]", "logger=csv",
)  # fmt: skip
HERE = __name__


def convert(images: Tensor, how: str) -> Any:
    """A user's images, in one of the ways in which they come."""
    return {
        "plain": lambda: images, "labelled": lambda: images, "bytes": lambda: (images * 255).byte(),
        "doubles": images.double, "halves": images.half, "symmetric": lambda: images * 2 - 1,
        "up to 255": lambda: (images * 255).round(), "standardised": lambda: (images - 0.5) / 0.2,
        "missing": lambda: images.masked_fill(images > 0.5, torch.nan), "wide": lambda: images.repeat(1, 1, 1, 2),
        "no channels": lambda: images[:, 0], "binary": images.round, "levels": lambda: (images * 255).round() / 255,
    }[how]()  # fmt: skip


class Images(LightningDataModule):
    """A user's data module; `val` and `test` say how their images come, where they differ."""

    def __init__(
        self, image_shape: list[int], num_train: int, num_val: int, num_test: int, batch_size: int, how: str = "plain",
        test: str | None = None, extra: int = 0, own_batch: int | None = None, drop_last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = {"train": num_train + extra, "val": num_val, "test": num_test}
        self.shape, self.how, self.test = image_shape, how, test or how
        self.batch_size, self.drop_last = own_batch or batch_size, drop_last

    def _loader(self, split: str) -> DataLoader:
        how = self.test if split == "test" else self.how
        count = self.sizes[split]
        images = torch.rand(count, *self.shape, generator=torch.Generator().manual_seed(0))
        labels = (torch.arange(count),) if how == "labelled" else ()
        return DataLoader(TensorDataset(convert(images, how), *labels), self.batch_size, drop_last=self.drop_last)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")


class Hooked(Images):
    """Bytes that a hook makes pixels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] / 255]


class Named(Images):
    """Batches with names, as of other libraries."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"image": batch[0]}


class Mislabelled(Images):
    """Fewer labels than images."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0], batch[1][:-1]]


OURS = (
    "dataset", "root", "train_images", "test_images", "subset", "subset_seed", "binarize", "binarize_seed",
)  # fmt: skip


def of(kind: str, *words: str) -> tuple[str, ...]:
    return (f"data._target_={HERE}.{kind}", *(f"~data.{key}" for key in OURS), *words)


class Stuck(nn.Module):
    """A block that fails in its backward pass, and only there."""

    class _Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    def forward(self, x: Tensor) -> Tensor:
        return self._Function.apply(x)


class Unsaveable(nn.Module):
    """A block whose extra state no file takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> Any:
        return lambda: None


class WrongHook(Callback):
    """A callback whose hook takes too little."""

    def on_validation_epoch_end(self, trainer: Any) -> None:  # type: ignore[override]
        """Never reached."""


class TestsBadly(Callback):
    """Fails after the training."""

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        raise KeyError("late")


class Noisy(Callback):
    """Prints, draws random numbers, and looks at how long the training is."""

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        assert trainer.max_epochs == 3
        print("noise")
        print("noise", file=sys.stderr)
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002


def unfit(vae: Any, batches: Any) -> float:
    return next(batches)[1000].mean().item()


def over_all(vae: Any, batches: Any) -> float:
    """A metric that needs all test images."""
    count = sum(len(batch) for batch in batches)
    if count < 200:
        raise ValueError(f"{count} images are too few")
    return float(count)


FURTHER = "++metrics.further={{bad:{{_target_:{}.{},heading:h,meaning:m}}}}"
STOP = "++callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:%s}"

REFUSED = [
    (of("Images", "+data.how=symmetric"), "data", "values from -1 to 1, but they must lie in [0, 1]: (images + 1) / 2"),
    (of("Images", "+data.how=bytes"), "data", "torch.uint8, but they must be torch.float32 with values in [0, 1]"),
    (of("Images", "+data.how=doubles"), "data", "torch.float64"),
    (of("Images", "+data.how=halves"), "data", "torch.float16"),
    (of("Images", "+data.how=up to 255"), "data", "images / 255 does"),
    (of("Images", "+data.how=standardised"), "data", "values from -2.5"),
    (of("Images", "+data.how=missing"), "data", "NaN"),
    (of("Images", "+data.how=wide"), "data", "shape [20, 1, 28, 56], but data.image_shape=[1, 28, 28]"),
    (of("Images", "+data.how=no channels"), "data", "shape [20, 28, 28]"),
    (of("Images", "+data.test=symmetric"), "data", "test_dataloader"),
    (of("Images", "+data.how=labelled", "+data.test=missing"), "data", "test_dataloader"),
    (of("Images", "+data.extra=7"), "data.num_train", "gives, 47, but is 40"),
    (of("Images", "+data.extra=-7"), "data.num_train", "gives, 33, but is 40"),
    (of("Images", "+data.own_batch=8"), "data.batch_size", "must be that of its batches, 8, but is 20"),
    (of("Images", "data.batch_size=64", "+data.drop_last=true"), "data", "train_dataloader gives no batch"),
    (of("Images", "likelihood=bernoulli", "objective=elbo"), "data", "it needs pixels that are 0 or 1"),
    (of("Named"), "data", "gives a dict, but must give images"),
    (of("Mislabelled", "+data.how=labelled"), "data", "labels of shape [19] for 20 images"),
    ((f"encoder.blocks=[{{down:4}},{{_target_:{HERE}.Stuck}}]",), "encoder.blocks[1]", "RuntimeError: no way back"),
    ((f"encoder.blocks=[{{down:4}},{{_target_:{HERE}.Unsaveable}}]",), "", "pickle"),
    ((f"++callbacks.mine._target_={HERE}.WrongHook",), "callbacks.mine", "TypeError"),
    ((f"++callbacks.mine._target_={HERE}.TestsBadly",), "callbacks.mine", "KeyError: 'late', in line"),
    ((STOP % "val/nothing",), "callbacks.stop", "val/nothing"),
    ((STOP % "val/total", "data.num_val=0"), "callbacks.stop", "val/total"),
    ((FURTHER.format(HERE, "unfit"),), "metrics.further.bad", "IndexError"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "key", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_every_run_would_fail_of_is_refused(
    run_of: Compose, words: tuple[str, ...], key: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(*SMALL, *words)
    runner.check(run.config)  # which does not find it
    with pytest.raises(ConfigError) as raised:
        trial.check(run)
    (problem,) = raised.value.problems
    assert not key or problem.key == key
    assert text in problem.text
    assert "\n" not in problem.text
    assert not Path("outputs").exists()
    assert capfd.readouterr() == ("", "")


ACCEPTED = [
    (),
    ("data.num_val=0",),
    of("Images"),
    of("Images", "+data.how=labelled", "+data.own_batch=20"),
    of("Hooked", "+data.how=bytes"),
    of("Images", "+data.how=binary", "likelihood=bernoulli", "objective=elbo"),
    (STOP % "val/total",),
    ("data.num_test=300", FURTHER.format(HERE, "over_all")),
    ("+trainer.val_check_interval=2", "+trainer.accumulate_grad_batches=2", "+trainer.overfit_batches=2"),
    ("++callbacks.swa={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.001}",),
    ("++callbacks.keep={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:kept,monitor:val/total}",),
    ("++callbacks.find={_target_:lightning.pytorch.callbacks.BatchSizeFinder}",),
    ("logger=[csv,mlflow]",),
    (f"++callbacks.mine._target_={HERE}.Noisy",),
]


@pytest.mark.parametrize("words", ACCEPTED, ids=range(len(ACCEPTED)))
def test_a_trial_leaves_nothing_behind(
    run_of: Compose, words: tuple[str, ...], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    trial.check(run_of(*SMALL, *words))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert not [*tmp_path.iterdir()]
    assert capfd.readouterr() == ("", "")


def test_one_trial_is_enough_for_runs_that_differ_in_seeds_and_rates(run_of: Compose) -> None:
    runs = [
        run_of(*SMALL, f"seed={seed}", f"optimizer.lr={rate}", f"latent.dim={dim}", "callbacks=default")
        for seed in (0, 1) for rate in (0.1, 0.2) for dim in (2, 3)
    ]  # fmt: skip
    assert trial.chosen(runs) == [runs[0], runs[1]]


def test_trials_train_every_encoder_and_every_decoder(run_of: Compose) -> None:
    runs = [
        run_of(f"encoder={encoder}", f"decoder={decoder}", f"seed={seed}")
        for encoder in ("vanilla", "encdec", "mlp") for decoder in ("vanilla", "encdec") for seed in (0, 1)
    ]  # fmt: skip
    assert [(run.encoder, run.decoder, run.config.seed) for run in trial.chosen(runs)] == [
        ("vanilla", "vanilla", 0),
        ("encdec", "encdec", 0),
        ("mlp", "vanilla", 0),
    ]


def test_no_room_for_a_trial_says_nothing_about_the_run(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "save_weights", full)
    trial.check(run_of(*SMALL))
