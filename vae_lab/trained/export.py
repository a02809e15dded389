"""Export a trained model to files for other programs, and compare each with the model."""

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from vae_lab import results
from vae_lab.config import Config, FolderConfig
from vae_lab.data import DataError
from vae_lab.model import vae
from vae_lab.model.weights import read_weights, save_weights
from vae_lab.results.integrity import sha256
from vae_lab.trained import card, foreign, sheets
from vae_lab.trained.card import FIGURES
from vae_lab.trained.loading import LoadError, load, read_settings
from vae_lab.trained.trust import Allowed

TOLERANCE = 1e-5
"""Largest allowed difference from the model: absolute, but relative for values beyond ±1."""
BATCHES = (1, 3, 8)
"""Batch sizes that an exported half is tested with; none equals the batch size of tracing."""
EXAMPLE = 2
LOCAL = re.compile(r"^(data\.root|hydra|\+*logger|callbacks)\b|=['\"\[{]*[/~]")
"""Overrides that name a local folder or local files."""


class ExportError(ValueError):
    """A model that cannot be exported, or whose export differs from it."""


class Exported(NamedTuple):
    """The folder of an export, and the sentences to print about it."""

    folder: Path
    sentences: list[str]


class Encoder(nn.Module):
    """Images (b, c, h, w) in [0, 1] to `posterior.outputs`, such as mean and log-variance, (b, *latent_shape) each."""

    inputs = ("images",)

    def __init__(self, model: vae.VAE) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.posterior = model.posterior
        self.outputs = model.posterior.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        posterior = self.posterior(self.encoder(images))
        return tuple(getattr(posterior, name) for name in self.outputs)


class Decoder(nn.Module):
    """Latent codes (b, *latent_shape) to the mean images (b, c, h, w)."""

    inputs, outputs = ("z",), ("images",)

    def __init__(self, model: vae.VAE) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.likelihood = model.likelihood

    def forward(self, z: Tensor) -> Tensor:
        return self.likelihood(self.decoder(z)).mean


Half = Encoder | Decoder
Run = Callable[[Tensor], Sequence[Tensor]]
"""An exported half, loaded again."""


# --- Formats -----------------------------------------------------------------------------------------------


def _write_onnx(half: Half, program: torch.export.ExportedProgram, path: Path) -> None:
    torch.onnx.export(
        program, (), str(path), dynamo=True, input_names=half.inputs, output_names=half.outputs, external_data=False,
        optimize=True, verbose=False,
    )  # fmt: skip


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings concern its own optimisations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    return lambda tensor: [
        torch.from_numpy(np.asarray(one)) for one in session.run(None, {model_input.name: tensor.numpy()})
    ]


def _write_program(half: Half, program: torch.export.ExportedProgram, path: Path) -> None:
    with open(path, "wb") as file:  # torch warns about a path that does not end in .pt2
        torch.export.save(program, file)


def _read_program(path: Path) -> Run:
    with open(path, "rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()

    def run(tensor: Tensor) -> Sequence[Tensor]:
        output = module(tensor)
        return [output] if isinstance(output, Tensor) else list(output)

    return run


class Format(NamedTuple):
    """How to write and read the two halves in a format, and the packages that it needs."""

    suffix: str
    write: Callable[[Half, torch.export.ExportedProgram, Path], None]
    read: Callable[[Path], Run]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch_export": Format(".pt2", _write_program, _read_program),
}
SAFETENSORS = "safetensors"


def check_packages(formats: Iterable[str]) -> None:
    """Check that the packages that the formats need are installed.

    Raises:
        ExportError: if one is missing.
    """
    for name in formats:
        wanted = FORMATS[name].packages if name in FORMATS else ()
        missing = [package for package in wanted if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(
                f"--format {name} takes {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                "installed: pip install 'vae-lab[export]'"
            )


def export_halves(model: vae.VAE, format: str, folder: Path) -> dict[str, float]:
    """Write encoder and decoder of a model in evaluation mode; returns each file's largest difference from the model.

    Raises:
        ExportError: if a half cannot be written in the format, or differs after it is read again. An existing file is
            then kept.
        OSError: if a file cannot be written.
    """
    kind = FORMATS[format]
    assert model.image_shape is not None
    halves: tuple[tuple[Half, tuple[int, ...]], ...] = (
        (Encoder(model), model.image_shape),
        (Decoder(model), model.latent_shape),
    )
    differences = {}
    for half, shape in halves:
        name = f"{type(half).__name__.lower()}{kind.suffix}"
        half.eval().requires_grad_(False)
        with results.replacing(folder / name) as path, _quiet(), torch.no_grad():
            try:
                batch = torch.export.Dim("batch", min=1)
                program = torch.export.export(
                    half, (_example(half, shape, EXAMPLE),), dynamic_shapes=({0: batch},), strict=False
                )
                kind.write(half, program, path)
                run = kind.read(path)
            except OSError:
                raise
            except Exception as error:  # exporters raise many types for unsupported models
                raise ExportError(
                    f"the {type(half).__name__.lower()} cannot be written as {format} "
                    f"({type(error).__name__}: {_short(error)})"
                ) from error
            differences[name] = _check(half, run, shape, name)
    return differences


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def _example(half: Half, shape: tuple[int, ...], count: int) -> Float[Tensor, "b ..."]:
    """Random images with values in [0, 1], or latent codes from N(0, I); the same in every call."""
    generator = torch.Generator().manual_seed(count)
    draw = torch.rand if isinstance(half, Encoder) else torch.randn
    return draw(count, *shape, generator=generator)


def _check(half: Half, run: Run, shape: tuple[int, ...], name: str) -> float:
    """The largest difference between the half and its export.

    Raises:
        ExportError: if it exceeds the tolerance, or the export does not accept a batch size.
    """
    largest = 0.0
    for count in BATCHES:
        example = _example(half, shape, count)
        expected = half(example)
        expected = [expected] if isinstance(expected, Tensor) else expected
        try:
            got = run(example)
        except Exception as error:  # runtimes raise their own types
            raise ExportError(f"{name} does not take a batch of {count} ({_short(error)})") from error
        for output, one, other in zip(half.outputs, expected, got, strict=True):
            if one.shape != other.shape:
                shapes = f"{tuple(other.shape)} for a batch of {count}, the model {tuple(one.shape)}"
                raise ExportError(f"{name} gives {output} of shape {shapes}")
            difference = ((one - other).abs() / one.abs().clamp(min=1)).max().item()
            if not difference <= TOLERANCE:
                size = f"{difference:.2g} for a batch of {count}, and may by {TOLERANCE:g}"
                raise ExportError(f"{name} is not the model: {output} differs by up to {size}")
            largest = max(largest, difference)
    return largest


def export_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights as safetensors, in 32-bit floats, read them again and compare them with the model.

    Raises:
        ExportError: if a tensor is missing or differs.
        OSError: if the file cannot be written.
    """
    save_weights(model, folder / results.WEIGHTS)
    stored = read_weights(folder / results.WEIGHTS)
    for name, tensor in model.state_dict().items():
        other = stored.get(name)
        if other is None or not torch.equal(other, tensor):
            (folder / results.WEIGHTS).unlink()
            raise ExportError(
                f"{results.WEIGHTS} is not the model: {name} {'is missing' if other is None else 'differs'}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what exporters print, warn and log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


# --- A folder for a model hub ------------------------------------------------------------------------------


def export(
    run: Path,
    formats: Sequence[str],
    out: Path | None = None,
    best: str | None = None,
    allow: Allowed | Iterable[Allowed] = (),
    device: str = "cpu",
    root: str | None = None,
    license: str = "other",
) -> Exported:
    """Write a finished run's model in some formats, with a model card, to a folder that can be uploaded as it is.

    The run's folder may be untrusted, as in `load`; none of its files is copied.

    Args:
        run: a run's folder; with `best`, that of a sweep or a cell.
        formats: any of `onnx`, `torch_export`, `safetensors`.
        out: the folder for the files; by default `export` in the run's folder.
        best: see `load`.
        allow: see `load`.
        device: the device that draws the pictures; the model is written and checked on the CPU.
        root: the folder of the data set's files, instead of the configuration's `data.root`.
        license: licence of the weights, as model hubs spell it.

    Raises:
        ExportError: if packages of a format are missing, or an exported model differs from the run's.
        LoadError: if there is no model, see `load`.
        OSError: if a file cannot be written.
    """
    for name in formats:
        if name not in (*FORMATS, SAFETENSORS):
            raise ExportError(f"--format: there is no {name!r}; known: {', '.join((*FORMATS, SAFETENSORS))}")
    check_packages(formats)
    folder, result = foreign.choose(run, best)
    model = load(folder, allow, device)
    settings = read_settings(folder)
    target = folder / results.EXPORT if out is None else out
    if target.exists() and not target.is_dir():
        raise ExportError(f"--out: must be a folder, but {target} is a file")
    if out is None and target.is_symlink():
        raise ExportError(f"{target} is a link to another folder; name that folder by --out, or remove the link")
    if target.exists() and target.resolve() == folder.resolve():
        raise ExportError(f"--out: {target} is the run's own folder; choose another one")
    # A lock file in the export's folder would be uploaded with it.
    with results.locked(folder) if out is None else contextlib.nullcontext() as owner:
        if owner is not None:
            raise ExportError(f"{folder} is in the hands of {owner}; export it when that has ended, or name --out")
        target.mkdir(parents=True, exist_ok=True)
        _check_same(target, result)
        return _export(folder, result, settings, model, target, formats, root, license)


def _export(
    folder: Path,
    result: results.Result,
    settings: Config,
    model: vae.VAE,
    target: Path,
    formats: Sequence[str],
    root: str | None,
    license: str,
) -> Exported:
    sentences = []
    pictures, problem = _draw_pictures(folder, model, target, root)
    if problem:
        sentences.append(f"! the card has no reconstructions: {problem}")
    console = Console(stderr=True)
    model.cpu()
    for name in dict.fromkeys(formats):
        with console.status(f"writing {name}") if console.is_terminal else contextlib.nullcontext():
            if name == SAFETENSORS:
                export_weights(model, target)
                sentences.append(f"{results.WEIGHTS}: the weights, read again and equal to the model's")
                continue
            for file, difference in export_halves(model, name, target).items():
                sentences.append(f"{file}: read again, differs from the model by {difference:.1g} at most")
    written = [file for file in card.FILES if (target / file).is_file()]
    files = {results.WEIGHTS: sha256(target / results.WEIGHTS)} if results.WEIGHTS in written else {}
    container = _portable(settings)
    overrides = [one for one in result.overrides if not LOCAL.search(one)]
    results.write_config(target, container)
    results.write_result(target, result.model_copy(update={"files": files, "overrides": overrides}))
    text = card.card(
        card.Facts(
            result,
            container,
            model.image_shape or (),
            model.latent_shape,
            written,
            pictures,
            license,
            model.posterior.outputs,
        )
    )
    results.write_text(target / card.CARD, text)
    return Exported(target, sentences)


def _portable(settings: Config) -> dict[str, Any]:
    """The configuration without local folders."""
    container = settings.container() | {"logger": {}, "callbacks": {}}
    if "root" in container["data"]:
        container["data"]["root"] = "." if isinstance(settings.data, FolderConfig) else None
    return container


def _check_same(target: Path, result: results.Result) -> None:
    """Check that a folder does not contain the export of another run, which the new card would not describe."""
    existing = results.read_result(target)

    def identity(one: results.Result) -> tuple[Any, ...]:
        return one.config_sha256, one.seed, one.train, one.timing.train_seconds

    if existing is not None and identity(existing) != identity(result):
        raise ExportError(f"{target} holds the export of another run; choose another folder by --out, or remove it")


def _draw_pictures(folder: Path, model: vae.VAE, target: Path, root: str | None) -> tuple[list[str], str]:
    """Draw the card's pictures; returns the files, and why one could not be drawn, or an empty string."""
    test = sheets.TestImages(folder, root, model)
    drawn, problem = [], ""
    for kind, file in FIGURES.items():
        try:
            pictures = sheets.draw(model, sheets.Wanted(kind, rows=1 if kind == "reconstructions" else 4), test)
        except (DataError, LoadError, sheets.SheetError, ValueError) as error:
            problem = str(error)
            with contextlib.suppress(FileNotFoundError):
                (target / file).unlink()
            continue
        sheets.write_sheet(target / file, sheets.sheet(pictures))
        drawn.append(file)
    return drawn, problem
