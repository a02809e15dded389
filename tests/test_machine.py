"""What is set up on a machine so that trainings are fast, and changes no figure of theirs."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Compose

from vae_lab import config
from vae_lab.config import runs
from vae_lab.training import machine, runner
from vae_lab.training.module import LitVAE

SMALL = ("data.num_train=96", "data.num_val=32", "data.num_test=32", "trainer.max_epochs=2", "trainer.threads=1",
         "encoder.blocks=[{down:4}]", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]", "latent.dim=4",
         "metrics.frechet=false")  # fmt: skip

FAULTS = """
import resource, torch
from vae_lab.training.machine import keep_freed_memory
kept = keep_freed_memory()
for step in range(60):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2_000_000) for _ in range(3)]
    del tensors
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_tensors_free_is_kept_for_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("not glibc, or set by the environment")
    assert int(faults) < 0.1 * (40 * 3 * 8_000_000 / resource.getpagesize())


def test_what_the_user_says_of_memory_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not machine.keep_freed_memory()


def test_what_an_ended_run_left_is_given_back() -> None:
    if not machine.keep_freed_memory():
        pytest.skip("not glibc, or set by the environment")
    tensors = [torch.ones(2_000_000) for _ in range(40)]
    held = resident()
    del tensors
    machine.reset_peak_memory()
    assert resident() < held - 200e6


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512_bf16 avx2", "bf16-mixed"), ("sse amx_bf16", "bf16-mixed"), ("avx512f avx_bf16x", "32-true")],
)
def test_the_precision_is_the_processors(monkeypatch: pytest.MonkeyPatch, flags: str, expected: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"model name\t: X\nflags\t\t: fpu {flags} sse2\nbugs\t: none\n")
    assert runs._native_precision.__wrapped__() == expected


def test_where_the_processor_cannot_be_read_it_is_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert runs._native_precision.__wrapped__() == "32-true"


def test_the_precision_is_part_of_what_a_run_is(run_of: Compose) -> None:
    assert run_of().config.trainer.precision == config.precision()
    assert run_of("trainer.precision=32-true").config.sha256() != run_of("trainer.precision=bf16-mixed").config.sha256()


def test_validation_and_test_are_in_32_bits_however_the_model_is_trained(run_of: Compose) -> None:
    settings = run_of(*SMALL).config
    module = LitVAE(
        runner.vae.build(settings).eval(), config.build(settings.objective), config.build(settings.optimizer)
    )
    images = torch.rand(8, 1, 28, 28)

    def evaluated(*, mixed: bool) -> dict[str, float]:
        module._start_evaluation("test")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            module._evaluate("test", images)
        return module.averages["test"].value()

    assert evaluated(mixed=True) == evaluated(mixed=False)
