"""The only LightningModule: it adds losses, their averages, optimiser and scheduler to a plain model."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vae_lab import compat, results
from vae_lab.data import Batches, Streamed, derived_seed, shards
from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import NOISE_SEED
from vae_lab.model.distributions import by_dimension
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective
from vae_lab.training import schedules

log = logging.getLogger(__name__)

CHECK_EVERY = 20
"""Steps between two checks of the losses. Each check waits for the device."""


class LossError(ArithmeticError):
    """A loss is not a finite number."""

    def __init__(self, split: str, term: str, value: float, place: str) -> None:
        super().__init__(
            f"the {split} loss is not finite in {place}: {term} is {value}; "
            "a lower optimizer.lr or trainer.gradient_clip_val may help"
        )


class Average:
    """Mean of the loss terms over the images of an epoch; all images have equal weight.

    The terms of a batch stay on the device until they are fetched, and are then summed in 64 bits.
    """

    def __init__(self) -> None:
        self.images = 0
        self.first_images = 0
        self.batches = 0
        self.terms: tuple[str, ...] = ()
        self._sums: dict[str, float] = {}
        self._pending: list[tuple[int, list[Tensor]]] = []
        self._first_invalid: tuple[int, str, float] | None = None
        self._kl: Tensor | None = None

    def add(self, losses: dict[str, Tensor], images: int, kl: Tensor | None = None) -> None:
        """Add a batch, and its KL divergence (b, z) per image and dimension if given; does not wait for the device."""
        if not self.terms:
            self.terms = tuple(losses)
            self._sums = dict.fromkeys(self.terms, 0.0)
        self._pending.append((images, [losses[term].detach() for term in self.terms]))
        self.images += images
        if not self.batches:
            self.first_images = images
        self.batches += 1
        if kl is not None:
            self._kl = kl.detach().sum(0) if self._kl is None else self._kl + kl.detach().sum(0)

    def _fetch(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = torch.stack([torch.stack(terms) for _, terms in pending]).tolist()
        for batch, (row, (images, _)) in enumerate(zip(rows, pending, strict=True), self.batches - len(pending) + 1):
            values = dict(zip(self.terms, row, strict=True))
            term = not_finite(values)
            if term is not None and self._first_invalid is None:
                self._first_invalid = batch, term, values[term]
            for term, value in values.items():
                self._sums[term] += images * value

    def first_not_finite(self) -> tuple[int, str, float] | None:
        """The first batch with a loss that is not finite: its number (from 1), the term and the value; fetches.

        All processes call it together and get the same answer.
        """
        self._fetch()
        wrong = self._first_invalid
        own = [math.inf, 0, 0.0] if wrong is None else [wrong[0], self.terms.index(wrong[1]), wrong[2]]
        number, index, value = min(shards.gathered(own), key=lambda found: found[0])
        return None if math.isinf(number) else (int(number), self.terms[int(index)], value)

    def bring_together(self) -> None:
        """Add the sums of the other processes. All processes call it once, at the end of the epoch."""
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
        """The mean KL divergence of each latent dimension in nats; None if it was not given."""
        return None if self._kl is None else self._kl / self.images


def not_finite(values: dict[str, float]) -> str | None:
    """The name of a term that is not finite, the total only if no other is; None if all are finite."""
    terms = sorted(values, key=lambda term: term == "total")
    return next((term for term in terms if not math.isfinite(values[term])), None)


class LitVAE(LightningModule):
    """A model, its objective and how it is optimised.

    Args:
        vae: the model.
        objective: maps model, images and progress to named terms.
        optimizer: maps parameters to an optimiser.
        scheduler: maps an optimiser to a scheduler that advances once per training step, or None.
        seed: seed of the noise. Each epoch has its own stream, so that an epoch can be repeated.
        lengths: arguments of the scheduler that are the number of optimiser steps, known once the data are loaded.

    If several processes train one run, each computes its part of a batch. Each draws the z of the whole batch and takes
    the rows of its part, so that an image gets the same z as with one process.
    """

    def __init__(
        self,
        vae: VAE,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        lengths: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.vae = vae
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.seed = seed
        self.lengths = lengths
        self.averages: dict[str, Average] = {}
        self._noise = torch.Generator()
        self._part = shards.mine()
        self._train_noise: torch.Generator | None = None
        self.warnings: list[str] = []
        """Sentences for the run's result."""

    def not_written(self, what: str, error: Exception) -> None:
        """Warn that a file could not be written. The run goes on: its figures matter more than the file."""
        warning = results.not_written(what, error)
        log.warning("%s", warning)
        self.warnings.append(warning)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == compat.SET_IN_EVERY_HOOK:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, which is minimised."""
        average = self.averages["train"]
        if self._part.processes > 1:
            losses, images, weight = self._losses_of_part(images_of(batch), batch_idx)
            total = losses["total"] * weight
        else:
            losses = self.objective(self.vae, images_of(batch), self._progress(batch_idx))
            images, total = len(images_of(batch)), losses["total"]
        if average.batches <= batch_idx:  # L-BFGS evaluates a batch several times
            average.add(losses, images)
        if (batch_idx + 1) % CHECK_EVERY == 0 or batch_idx + 1 == self.trainer.num_training_batches:
            self._check_losses()
        return total

    def _losses_of_part(self, images: Float[Tensor, "b c h w"], batch_idx: int) -> tuple[dict[str, Tensor], int, float]:
        """The losses of this process's part of a batch, its images, and its weight in the mean over processes.

        Our own loaders give the part; a user's loader gives the whole batch.
        """
        loader, part, epoch = self.trainer.train_dataloader, self._part, self.current_epoch
        if isinstance(loader, Batches | Streamed):
            count = loader.images_in(batch_idx)
        else:
            count = len(images)
            images = images[part.taken(count)]
        if self._train_noise is None or batch_idx == 0:
            # z comes from the stream that a single process would use. All other random numbers, such as dropout, come
            # from a separate stream per process, since the processes see different images.
            on_gpu = images.device.type == "cuda"
            state = torch.cuda.get_rng_state(images.device) if on_gpu else torch.get_rng_state()
            self._train_noise = torch.Generator(images.device)
            self._train_noise.set_state(state)
            torch.manual_seed(derived_seed(self.seed, f"epoch of process {part.rank}", epoch))
        with drawn_from(self._train_noise, part.taken(count), count, len(self.vae.latent_shape)):
            losses = self.objective(self.vae, images, self._progress(batch_idx))
        own = part.rows(count)
        return losses, own.stop - own.start, part.weight(count)

    def _check_losses(self) -> None:
        average = self.averages["train"]
        invalid = average.first_not_finite()
        if invalid is not None:
            batch, term, value = invalid
            step = self.trainer.fit_loop.total_batch_idx + 1 - (average.batches - batch)
            place = f"step {step} (epoch {self.epochs_done}, step {batch} of {self.trainer.num_training_batches})"
            raise LossError("train", term, value, place)

    def on_train_epoch_start(self) -> None:
        """Seed this epoch: the order of the images, and the generators of Python, NumPy and torch."""
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
        self._noise.manual_seed(NOISE_SEED)

    def _evaluate(self, split: str, batch: Any) -> None:
        whole = images_of(batch)
        own, taken = self._part.rows(len(whole)), self._part.taken(len(whole))
        images, count = whole[taken], own.stop - own.start
        with (
            torch.autocast(images.device.type, enabled=False),  # evaluate in 32 bits, whatever the training precision
            drawn_from(self._noise, taken, len(whole), len(self.vae.latent_shape)),
            _captured(self.vae.posterior) as posteriors,
        ):
            losses = self.objective(self.vae, images, 1.0)  # what a schedule ends with, so that epochs compare
        dimensions = by_dimension(posteriors[-1], self.vae.prior()) if posteriors else None
        self.averages[split].add(losses, count, None if dimensions is None else dimensions[:count].flatten(1))

    def _progress(self, batch_idx: int) -> float:
        """The fraction of training that is done before a batch, from 0 to 1."""
        trainer, batches = self.trainer, self.trainer.num_training_batches
        if not trainer.max_epochs or trainer.max_epochs < 0 or batches in (0, math.inf):
            return 0.0
        done = (self.current_epoch + batch_idx / batches) / trainer.max_epochs
        if trainer.max_steps > 0:
            done = max(done, trainer.global_step / trainer.max_steps)
        return min(1.0, done)

    def _log(self, split: str) -> None:
        values = {f"{split}/{term}": value for term, value in self.averages[split].value().items()}
        self.log_dict(values | {"step": float(self.epochs_done)})  # Lightning takes "step" for the x axis

    @property
    def epochs_done(self) -> int:
        """The number of epochs trained, including the current one."""
        return self.current_epoch + 1 if self.trainer.state.fn == "fit" else self.current_epoch

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `trainer.gradient_clip_val` and `gradient_clip_algorithm` say; the default is by norm.

        In mixed precision Lightning refuses to clip with fused optimisers, because they may unscale gradients
        themselves. Without a scaler, as in bfloat16, there is no reason to refuse.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and gradient_clip_val:
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | Optimizer:
        """The optimiser, and the scheduler, which advances with each step.

        `ReduceLROnPlateau` advances with each epoch instead, and goes by the validation total.

        Raises:
            ScheduleError: if the scheduler needs the number of steps, and it is not known.
        """
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        steps = schedules.steps_of(self.trainer) if self.lengths else None
        scheduler = schedules.schedule(self.make_scheduler, optimizer, dict.fromkeys(self.lengths, steps))
        if isinstance(scheduler, ReduceLROnPlateau):
            split = "val" if self.trainer.enable_validation else "train"
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "monitor": f"{split}/total"},
            }
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@contextmanager
def _captured(posterior: nn.Module) -> Iterator[list[Distribution]]:
    """Collect the posteriors that the objective computes inside this context."""
    found: list[Distribution] = []
    handle = posterior.register_forward_hook(lambda module, given, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
