"""A sweep keeps nothing of its runs in memory; `make scale` measures time and memory of a thousand of them."""

import gc

import pytest
import torch
from conftest import Command

ONE_STEP = (
    "+trainer.max_steps=1", "data.num_train=32", "data.batch_size=32", "data.num_val=32", "data.num_test=32",
    "latent.dim=4", "encoder=mlp", "decoder=mlp", "trainer.threads=1", "callbacks=quiet", "metrics.frechet=false",
)  # fmt: skip


@pytest.mark.slow
def test_a_long_sweep_keeps_no_more_than_a_short_one(command: Command) -> None:
    def kept(runs: int) -> tuple[int, int]:
        """The modules, and the bytes of tensors, that are alive after a sweep."""
        done = command("train", "-m", f"seed=range({runs})", *ONE_STEP, f"name=of_{runs}")
        assert done.returncode == 0, done.stderr
        gc.collect()
        alive = gc.get_objects()
        tensors = [one for one in alive if type(one) in (torch.Tensor, torch.nn.Parameter)]
        return sum(isinstance(one, torch.nn.Module) for one in alive), sum(one.nbytes for one in tensors)

    assert kept(1) == kept(4)
