"""Averages, noise and streams of the LightningModule."""

import math
from typing import ClassVar

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vae_lab import config
from vae_lab.data import Batches
from vae_lab.data.batches import images_of
from vae_lab.model import vae
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective
from vae_lab.objectives.elbo import Elbo
from vae_lab.objectives.mse_kl import MseKl
from vae_lab.training.module import Average, LitVAE, LossError
from vae_lab.training.parts import TERMS


def module_of(run_of: Compose, seed: int = 0) -> LitVAE:
    settings = run_of("latent.dim=4", "data.num_train=32", "data.batch_size=16", "trainer.max_epochs=2").config
    torch.manual_seed(seed)
    return LitVAE(
        vae.build(settings),
        config.build(settings.objective),
        config.build(settings.optimizer),
        config.build(settings.scheduler) if settings.scheduler else None,
        seed,
    )


def trainer(**arguments: object) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **quiet, **arguments)


def store(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)


def test_each_image_weighs_alike_when_the_last_batch_is_short() -> None:
    average = Average()
    assert average.value() == {}
    for loss, images in ((1.0, 64), (4.0, 16)):
        average.add(dict.fromkeys(TERMS, torch.tensor(loss)), images)
    assert average.value() == dict.fromkeys(TERMS, pytest.approx((64 + 4 * 16) / 80))


def test_the_first_loss_that_is_no_number_is_found_also_when_looked_for_later() -> None:
    average = Average()
    assert average.first_not_finite() is None
    values = [(1.0, 1.0), (2.0, 3.0), (1.0, math.nan), (math.inf, 1.0)]
    for reconstruction, kl in values[:2]:
        losses = {"total": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        average.add({term: torch.tensor(value) for term, value in losses.items()}, 10)
    assert average.first_not_finite() is None
    for reconstruction, kl in values[1:]:
        losses = {"total": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        average.add({term: torch.tensor(value) for term, value in losses.items()}, 10)
    batch, term, value = average.first_not_finite() or (0, "", 0.0)
    assert (batch, term, math.isnan(value)) == (4, "kl", True)


class Failing(Objective):
    """Squared error, and a term that is not finite in the eighth call."""

    units: ClassVar = dict.fromkeys(TERMS, "squared error per pixel")
    is_likelihood_trained = False
    calls = 0

    def forward(self, vae: VAE, images: Tensor, progress: float) -> dict[str, Tensor]:
        self.calls += 1
        loss = (vae(images).likelihood.mean - images).square().mean()
        return {"total": loss, "reconstruction": loss, "kl": loss * (math.inf if self.calls == 8 else 0)}


def test_a_loss_that_is_no_number_stops_the_training_and_its_step_is_reported(run_of: Compose) -> None:
    module = module_of(run_of)
    module.objective, module.make_scheduler = Failing(), None
    batches = Batches(store(16), 4, seed=0)
    with pytest.raises(LossError, match=r"not finite in step 6 \(epoch 2, step 2 of 4\): kl is inf; a lower"):
        trainer().fit(module, batches, Batches(store(4), 4))
    # Two of a validation; not looked for in each step, but before the epoch ends.
    assert module.objective.calls == 1 + 4 + 1 + 4


def test_a_batch_may_be_images_or_begin_with_them() -> None:
    images = torch.rand(2, 1, 4, 4)
    assert images_of(images) is images
    assert images_of((images, torch.tensor([1, 2]))) is images


def evaluated(module: LitVAE, batch_size: int = 10) -> dict[str, float]:
    trainer().validate(module, Batches(store(30), batch_size), verbose=False)
    return module.averages["val"].value()


def test_evaluation_noise_is_the_same_for_every_seed(run_of: Compose) -> None:
    module, other = module_of(run_of), module_of(run_of, seed=1)
    other.load_state_dict(module.state_dict())
    torch.manual_seed(5)
    first = evaluated(module)
    torch.manual_seed(6)
    assert evaluated(other) == first == evaluated(module)


def test_evaluation_is_in_evaluation_mode_and_without_effect(run_of: Compose) -> None:
    module = module_of(run_of)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    evaluated(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def fitted(run_of: Compose, seed: int) -> list[torch.Tensor]:
    module = module_of(run_of, seed)
    torch.manual_seed(torch.randint(10**6, ()).item())
    trainer().fit(module, Batches(store(32), 16, seed), Batches(store(8), 8))
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_training_depends_on_its_seed_alone(run_of: Compose) -> None:
    first, again, other = fitted(run_of, 0), fitted(run_of, 0), fitted(run_of, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_training_average_is_that_of_the_steps(run_of: Compose) -> None:
    module = module_of(run_of)
    seen = []

    def listen(objective: Objective, given: object, losses: dict[str, Tensor]) -> None:
        if objective.training:
            seen.append(losses)

    module.objective.register_forward_hook(listen)
    trainer().fit(module, Batches(store(24), 16, 0), Batches(store(8), 8))
    last = seen[-2:]
    for term in TERMS:
        expected = (16 * last[0][term].item() + 8 * last[1][term].item()) / 24
        assert module.averages["train"].value()[term] == pytest.approx(expected, rel=1e-5)


class Schedule(MseKl):
    """Notes when it is called."""

    def __init__(self) -> None:
        super().__init__(beta=0.1)
        self.seen: dict[bool, list[float]] = {True: [], False: []}

    def forward(self, vae: VAE, images: Tensor, progress: float) -> dict[str, Tensor]:
        self.seen[self.training].append(progress)
        return super().forward(vae, images, progress) | {"progress": torch.tensor(progress)}


def test_an_objective_is_given_the_part_of_the_training_that_is_done_and_evaluated_as_at_its_end(
    run_of: Compose,
) -> None:
    module = module_of(run_of)
    module.objective = objective = Schedule()
    loop = trainer(num_sanity_val_steps=0)
    loop.fit(module, Batches(store(32), 16, 0), Batches(store(8), 8))
    loop.test(module, Batches(store(8), 8), verbose=False)
    assert objective.seen == {True: [0.0, 0.25, 0.5, 0.75], False: [1.0, 1.0, 1.0]}
    assert module.averages["train"].value()["progress"] == 0.625  # a term of its own is averaged like the others


def test_training_that_ends_after_some_steps_is_done_after_them(run_of: Compose) -> None:
    module = module_of(run_of)
    module.objective = objective = Schedule()
    trainer(num_sanity_val_steps=0, max_steps=3).fit(module, Batches(store(32), 16, 0), Batches(store(8), 8))
    assert objective.seen[True] == pytest.approx([0, 1 / 3, 2 / 3])


def test_the_divergence_of_each_dimension_is_kept_whatever_the_objective(run_of: Compose) -> None:
    module = module_of(run_of)
    module.objective = Elbo()
    losses = evaluated(module)
    dimensions = module.averages["val"].kl_per_dimension()
    assert dimensions is not None
    assert dimensions.shape == (4,)
    assert dimensions.sum().item() == pytest.approx(losses["kl"], rel=1e-5)


@pytest.mark.parametrize(("algorithm", "most"), [("norm", 1e-3), ("value", 1e-5)])
def test_gradients_are_clipped_also_before_a_fused_optimizer_in_mixed_precision(
    run_of: Compose, algorithm: str, most: float
) -> None:
    module, seen = module_of(run_of), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *arguments: object) -> None:
            gradients = torch.cat([weight.grad.flatten() for weight in module.parameters() if weight.grad is not None])
            seen.append((gradients.norm().item(), gradients.abs().max().item()))

    clipping = {"gradient_clip_val": most, "gradient_clip_algorithm": algorithm}
    trainer(**clipping, precision="bf16-mixed", callbacks=[Watch()]).fit(
        module, Batches(store(16), 8, seed=0), Batches(store(4), 4)
    )
    norms, largest = zip(*seen, strict=True)
    assert max(largest if algorithm == "value" else norms) == pytest.approx(most, rel=1e-3)
