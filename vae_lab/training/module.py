"""The only LightningModule: losses, their averages, optimiser and scheduler around a plain model."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lab import compat
from vae_lab.data import Batches, Streamed, derived_seed, shards
from vae_lab.data.batches import images_of
from vae_lab.model.distributions import by_dimension
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective

EVALUATION_SEED = 20140214
"""Start of the noise stream of every validation and test, the same for all runs."""

LOOK_EVERY = 20
"""Steps between two looks at the losses, each of which keeps a device waiting."""


class LossError(ArithmeticError):
    """A loss that is no longer a finite number."""

    def __init__(self, split: str, term: str, value: float, place: str) -> None:
        super().__init__(
            f"the {split} loss is not finite in {place}: {term} is {value}; "
            "a lower optimizer.lr or trainer.gradient_clip_val may help"
        )


class Average:
    """Mean of the loss terms over the images of an epoch, each image weighted alike.

    The terms of a batch stay on the device until somebody looks, and are then added up in 64 bits.
    """

    def __init__(self) -> None:
        self.images = 0
        self.first_images = 0
        self.batches = 0
        self.terms: tuple[str, ...] = ()
        self._sums: dict[str, float] = {}
        self._waiting: list[tuple[int, list[Tensor]]] = []
        self._first_wrong: tuple[int, str, float] | None = None
        self._kl: Tensor | None = None

    def add(self, losses: dict[str, Tensor], images: int, kl: Tensor | None = None) -> None:
        """Count a batch, with the KL divergence (b, z) of each image and dimension where kept; waits for nothing."""
        if not self.terms:
            self.terms = tuple(losses)
            self._sums = dict.fromkeys(self.terms, 0.0)
        self._waiting.append((images, [losses[term].detach() for term in self.terms]))
        self.images += images
        if not self.batches:
            self.first_images = images
        self.batches += 1
        if kl is not None:
            self._kl = kl.detach().sum(0) if self._kl is None else self._kl + kl.detach().sum(0)

    def _fetch(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = torch.stack([torch.stack(terms) for _, terms in waiting]).tolist()
        for batch, (row, (images, _)) in enumerate(zip(rows, waiting, strict=True), self.batches - len(waiting) + 1):
            values = dict(zip(self.terms, row, strict=True))
            term = not_finite(values)
            if term is not None and self._first_wrong is None:
                self._first_wrong = batch, term, values[term]
            for term, value in values.items():
                self._sums[term] += images * value

    def first_not_finite(self) -> tuple[int, str, float] | None:
        """The first batch (from 1) with a loss that is no number: which, its term and that value; fetches.

        Several processes look together, and find the same one.
        """
        self._fetch()
        wrong = self._first_wrong
        own = [math.inf, 0, 0.0] if wrong is None else [wrong[0], self.terms.index(wrong[1]), wrong[2]]
        number, index, value = min(shards.gathered(own), key=lambda found: found[0])
        return None if math.isinf(number) else (int(number), self.terms[int(index)], value)

    def bring_together(self) -> None:
        """Count what the other processes have counted; all call it, once, when the epoch has ended."""
        self._fetch()
        every = shards.gathered([self.images, self.first_images, *self._sums.values()])
        images, first_images, *sums = (sum(numbers) for numbers in zip(*every, strict=True))
        self.images, self.first_images = int(images), int(first_images)
        self._sums = dict(zip(self.terms, sums, strict=True))
        if self._kl is not None:
            self._kl = shards.added_up(self._kl).to(self._kl)

    def value(self) -> dict[str, float]:
        """The mean of each term so far; fetches from the device."""
        self._fetch()
        return {term: total / self.images for term, total in self._sums.items()} if self.images else {}

    def kl_per_dimension(self) -> Float[Tensor, " z"] | None:
        """The mean KL divergence of each latent dimension in nats, where it was kept."""
        return None if self._kl is None else self._kl / self.images


def not_finite(values: dict[str, float]) -> str | None:
    """The term that makes losses not finite, the total only where no other does; None if all are finite."""
    terms = sorted(values, key=lambda term: term == "total")
    return next((term for term in terms if not math.isfinite(values[term])), None)


class LitVAE(LightningModule):
    """A model, its objective and how it is optimised.

    Args:
        vae: the model.
        objective: model, images and progress to named terms.
        optimizer: parameters to an optimiser.
        scheduler: optimiser to a scheduler that advances once a training step, or None.
        seed: seed of the noise. Each epoch has a stream of its own, so that an epoch can be repeated.

    Several processes that train one run each compute their part of a batch (`share`). All draw the z of the whole batch
    and take the rows of their part, so that an image has the z that it has with one process.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.seed = seed
        self.averages: dict[str, Average] = {}
        self._noise = torch.Generator()
        self._part = shards.mine()
        self._train_noise: torch.Generator | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == compat.SET_IN_EVERY_HOOK:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch to the loss that is minimised."""
        if self._part.processes > 1:
            losses, images, weight = self._shared(images_of(batch), batch_idx)
            self.averages["train"].add(losses, images)
            total = losses["total"] * weight
        else:
            losses = self.objective(self.vae, images_of(batch), self._progress(batch_idx))
            self.averages["train"].add(losses, len(images_of(batch)))
            total = losses["total"]
        if (batch_idx + 1) % LOOK_EVERY == 0 or batch_idx + 1 == self.trainer.num_training_batches:
            self._look()
        return total

    def _shared(self, images: Float[Tensor, "b c h w"], batch_idx: int) -> tuple[dict[str, Tensor], int, float]:
        """The losses of this process's part of a batch, its images, and what they weigh in the mean over processes.

        Our own loaders give the part, a user's the whole batch.
        """
        loader, part, epoch = self.trainer.train_dataloader, self._part, self.current_epoch
        if isinstance(loader, Batches | Streamed):
            count = loader.images_in(batch_idx)
        else:
            count = len(images)
            images = images[part.taken(count)]
        if self._train_noise is None or batch_idx == 0:
            # What a single process draws z from. All else that is drawn at random, such as what is dropped out, is
            # another stream in each process, whose images differ.
            on_gpu = images.device.type == "cuda"
            state = torch.cuda.get_rng_state(images.device) if on_gpu else torch.get_rng_state()
            self._train_noise = torch.Generator(images.device)
            self._train_noise.set_state(state)
            torch.manual_seed(derived_seed(self.seed, f"epoch of process {part.rank}", epoch))
        with drawn_from(self._train_noise, part.taken(count), count, len(self.vae.latent_shape)):
            losses = self.objective(self.vae, images, self._progress(batch_idx))
        own = part.rows(count)
        return losses, own.stop - own.start, part.weight(count)

    def _look(self) -> None:
        average = self.averages["train"]
        found = average.first_not_finite()
        if found is not None:
            batch, term, value = found
            step = self.trainer.fit_loop.total_batch_idx + 1 - (average.batches - batch)
            place = f"step {step} (epoch {self.epochs_done}, step {batch} of {self.trainer.num_training_batches})"
            raise LossError("train", term, value, place)

    def on_train_epoch_start(self) -> None:
        """Start this epoch's streams: the order of the images, and Python's, NumPy's and torch's generators."""
        self.averages["train"] = Average()
        if isinstance(self.trainer.train_dataloader, Batches | Streamed):
            self.trainer.train_dataloader.set_epoch(self.current_epoch)
        seed_everything(derived_seed(self.seed, "epoch", self.current_epoch), verbose=False)

    def on_train_epoch_end(self) -> None:
        """Log the epoch."""
        self._log("train")

    def on_validation_epoch_start(self) -> None:
        """Start the fixed noise stream."""
        self._start_evaluation("val")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One batch of the validation images."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch."""
        self._log("val")

    def on_test_epoch_start(self) -> None:
        """Start the fixed noise stream."""
        self._start_evaluation("test")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """One batch of the test images."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._log("test")

    def _start_evaluation(self, split: str) -> None:
        self.averages[split] = Average()
        self._noise.manual_seed(EVALUATION_SEED)

    def _evaluate(self, split: str, batch: Any) -> None:
        whole = images_of(batch)
        own, taken = self._part.rows(len(whole)), self._part.taken(len(whole))
        images, count = whole[taken], own.stop - own.start
        with (
            torch.autocast(images.device.type, enabled=False),  # in 32 bits, however the model was trained
            drawn_from(self._noise, taken, len(whole), len(self.vae.latent_shape)),
            _noticed(self.vae.posterior) as posteriors,
        ):
            losses = self.objective(self.vae, images, 1.0 if split == "test" else self._progress())
        dimensions = by_dimension(posteriors[-1], self.vae.prior()) if posteriors else None
        self.averages[split].add(losses, count, None if dimensions is None else dimensions[:count].flatten(1))

    def _progress(self, batch_idx: int | None = None) -> float:
        """The part of the training that is done, from 0 to 1; after the last step of an epoch without `batch_idx`."""
        trainer, batches = self.trainer, self.trainer.num_training_batches
        if not trainer.max_epochs or trainer.max_epochs < 0 or batches in (0, math.inf):
            return 0.0
        done = self.epochs_done if batch_idx is None else self.current_epoch + batch_idx / batches
        return min(1.0, done / trainer.max_epochs)

    def _log(self, split: str) -> None:
        values = {f"{split}/{term}": value for term, value in self.averages[split].value().items()}
        self.log_dict(values | {"step": float(self.epochs_done)})  # Lightning takes "step" for the x axis

    @property
    def epochs_done(self) -> int:
        """Epochs trained, the current one included."""
        return self.current_epoch + 1 if self.trainer.state.fn == "fit" else self.current_epoch

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `trainer.gradient_clip_val` and `gradient_clip_algorithm` say, by norm unless told otherwise.

        In mixed precision Lightning refuses fused optimisers, which could unscale gradients themselves; where nothing
        is scaled, as in bfloat16, there is no reason to.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and gradient_clip_val:
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | Optimizer:
        """The optimiser, and the scheduler that advances with each step."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }


@contextmanager
def _noticed(posterior: nn.Module) -> Iterator[list[Distribution]]:
    """The posteriors that are made within, by whatever objective."""
    found: list[Distribution] = []
    handle = posterior.register_forward_hook(lambda module, given, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
