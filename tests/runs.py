"""Run folders made by hand, for what reads them: as a training would have left them, figures and all."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from vae_lab import results
from vae_lab.config import Run, config_folder, register_resolvers
from vae_lab.results import Environment, Losses, Memory, Model, Result, Test, Timing

ENVIRONMENT = Environment(python="3.11", torch="2.15", lightning="2.6", device="Processor A", threads=2, commit=None)


register_resolvers()


@functools.cache
def settings(overrides: tuple[str, ...]) -> Run:
    """The run of these words, composed once."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return Run.of(compose("train", list(overrides), return_hydra_config=True))


def write_run(
    sweep: Path,
    encoder: str = "vanilla",
    decoder: str = "vanilla",
    seed: int = 0,
    total: float | None = 0.016,
    *,
    overrides: tuple[str, ...] = (),
    cell: str | None = None,
    seconds: float = 7.0,
    device: str = "Processor A",
    epochs: int = 10,
    pictures: bool = True,
    position: int | None = None,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """One finished run under `sweep`; gives its folder."""
    known = {side: choice if (config_folder() / side / f"{choice}.yaml").exists() else "vanilla"
             for side, choice in (("encoder", encoder), ("decoder", decoder))}  # fmt: skip
    run = settings(("name=x", *(f"{side}={choice}" for side, choice in known.items()), *overrides))
    words = (f"encoder={encoder}", f"decoder={decoder}", *overrides)
    cell = cell or run.cell.replace(f"{known['encoder']}-{known['decoder']}", f"{encoder}-{decoder}", 1)
    folder = sweep / cell / f"seed-{seed}"
    folder.mkdir(parents=True)
    losses = Losses(total=total, reconstruction=total and 0.75 * total, kl=total and 25 * total)
    values: dict[str, Any] = {
        "status": "finished",
        "error": None,
        "cell": cell,
        "encoder": encoder,
        "decoder": decoder,
        "seed": seed,
        "position": position,
        "overrides": [*words, f"seed={seed}"],
        "config_sha256": run.config.sha256(),
        "train": losses,
        "val": losses,
        "test": Test(**losses.model_dump()),
        "timing": Timing(
            train_seconds=seconds,
            epoch_seconds=[seconds / epochs] * epochs,
            first_step_seconds=0.1,
            images_per_second=30000 / seconds,
        ),
        "model": Model(
            parameters=1000 * len(encoder) + 10 * len(decoder),
            encoder_parameters=1000 * len(encoder),
            decoder_parameters=10 * len(decoder),
            flops_per_image=10**6 * len(encoder + decoder),
        ),
        "memory": Memory(peak_bytes=10**9),
        "environment": ENVIRONMENT.model_copy(update={"device": device}),
    }
    results.write_result(folder, Result(**values | changes))
    container = run.config.container() | {"seed": seed, "name": sweep.name}
    for key, value in (config or {}).items():
        section, _, name = key.partition(".")
        container[section][name] = value
    results.write_config(folder, container)
    scales = {"total": 1, "reconstruction": 0.75, "kl": 25}
    rows = [
        (
            epoch,
            split,
            seconds / epochs,
            {term: scale * (1 + 4 / epoch) * (total or 1) for term, scale in scales.items()},
        )
        for epoch in range(1, epochs + 1)
        for split in ("train", "val")
    ]
    results.write_history(folder, rows)
    if pictures:
        images = np.random.default_rng(seed).integers(0, 255, (10, 1, 28, 28), dtype=np.uint8)
        np.savez(folder / "pictures.npz", originals=images, reconstructions=images, samples=images)
    return folder


def write_grid(sweep: Path, seeds: int = 3, effect: float = 0.0, noise: float = 1e-4, **changes: Any) -> None:
    """The 2×2 grid: `effect` is what the encdec encoder adds to the test total."""
    random = np.random.default_rng(0)
    for seed in range(seeds):
        of_seed = random.normal(0, noise)
        for encoder in ("vanilla", "encdec"):
            for decoder in ("vanilla", "encdec"):
                total = 0.016 + of_seed + random.normal(0, noise) + effect * (encoder == "encdec")
                write_run(sweep, encoder, decoder, seed, total, **changes)
