"""A trained model as files for other programs, each held against the model itself."""

import contextlib
import hashlib
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
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_lab import results
from vae_lab.config import Config, FolderConfig
from vae_lab.data import DataError
from vae_lab.model import vae
from vae_lab.model.weights import save_weights
from vae_lab.trained import card, foreign, sheets
from vae_lab.trained.card import FIGURES
from vae_lab.trained.loading import LoadError, load, read_settings
from vae_lab.trained.trust import Allowed

TOLERANCE = 1e-5
"""Largest difference from the model: absolute, of values beyond ±1 relative."""
BATCHES = (1, 3, 8)
"""Sizes that an exported half is tried with; none is that of the example it was traced with."""
EXAMPLE = 2
LOCAL = re.compile(r"^(data\.root|hydra|\+*logger|callbacks)\b|=['\"\[{]*[/~]")
"""Overrides that name a folder of this machine, or are about its files."""


class ExportError(ValueError):
    """A model that cannot be exported, or whose export is another model."""


class Exported(NamedTuple):
    """What an export left: its folder, and what is to be said about it."""

    folder: Path
    sentences: list[str]


class Encoder(nn.Module):
    """Images (b, c, h, w) in [0, 1] to what their posteriors put out, such as mean and log-variance, (b, z) each."""

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
    """Latent vectors (b, z) to the mean images (b, c, h, w)."""

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
    options.log_severity_level = 3  # warnings are about its own optimisations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda tensor: [torch.from_numpy(np.asarray(one)) for one in session.run(None, {given.name: tensor.numpy()})]


def _write_program(half: Half, program: torch.export.ExportedProgram, path: Path) -> None:
    with open(path, "wb") as file:  # a name that ends in anything but .pt2 would be a warning
        torch.export.save(program, file)


def _read_program(path: Path) -> Run:
    with open(path, "rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()

    def run(tensor: Tensor) -> Sequence[Tensor]:
        given = module(tensor)
        return [given] if isinstance(given, Tensor) else list(given)

    return run


class Format(NamedTuple):
    """How the two halves are written and read in a format, and the packages that it takes."""

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
    """That what the formats take is installed.

    Raises:
        ExportError: if not.
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
    """Write encoder and decoder of a model in evaluation mode; gives each file's largest difference from the model.

    Raises:
        ExportError: if a half cannot be written in the format, or is another one when it is read again. The file is
            then as it was.
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
                    half, (_example(shape, EXAMPLE),), dynamic_shapes=({0: batch},), strict=False
                )
                kind.write(half, program, path)
                run = kind.read(path)
            except OSError:
                raise
            except Exception as error:  # exporters raise errors of many kinds over what they do not know
                raise ExportError(
                    f"the {type(half).__name__.lower()} cannot be written as {format} "
                    f"({type(error).__name__}: {_short(error)})"
                ) from error
            differences[name] = _check(half, run, shape, name)
    return differences


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def _example(shape: tuple[int, ...], count: int) -> Float[Tensor, "b ..."]:
    """Images with values in [0, 1], or latent vectors of the prior; always the same ones."""
    generator = torch.Generator().manual_seed(count)
    draw = torch.rand if len(shape) == 3 else torch.randn
    return draw(count, *shape, generator=generator)


def _check(half: Half, run: Run, shape: tuple[int, ...], name: str) -> float:
    """The largest difference between the half and its export.

    Raises:
        ExportError: if it is beyond the tolerance, or the export does not take such batches.
    """
    largest = 0.0
    for count in BATCHES:
        given = _example(shape, count)
        expected = half(given)
        expected = [expected] if isinstance(expected, Tensor) else expected
        try:
            got = run(given)
        except Exception as error:  # runtimes raise errors of their own
            raise ExportError(f"{name} does not take a batch of {count} ({_short(error)})") from error
        for output, one, other in zip(half.outputs, expected, got, strict=True):
            if one.shape != other.shape:
                shapes = f"{tuple(other.shape)} for a batch of {count}, the model {tuple(one.shape)}"
                raise ExportError(f"{name} gives {output} of shape {shapes}")
            difference = ((one - other).abs() / one.abs().clamp(min=1)).max().item()
            if not difference <= TOLERANCE:
                told = f"{difference:.2g} for a batch of {count}, and may by {TOLERANCE:g}"
                raise ExportError(f"{name} is not the model: {output} differs by up to {told}")
            largest = max(largest, difference)
    return largest


def export_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights as safetensors, in 32-bit floats, and hold what is read again against the model.

    Raises:
        ExportError: if a tensor is missing or another one.
        OSError: if the file cannot be written.
    """
    save_weights(model, folder / results.WEIGHTS)
    stored = load_file(folder / results.WEIGHTS)
    addresses = {tensor.data_ptr(): name for name, tensor in model.state_dict().items() if name in stored}
    for name, tensor in model.state_dict().items():  # of tensors that are shared one is stored
        other = stored.get(name, stored.get(addresses.get(tensor.data_ptr(), "")))
        if other is None or not torch.equal(other, tensor):
            (folder / results.WEIGHTS).unlink()
            raise ExportError(
                f"{results.WEIGHTS} is not the model: {name} {'is missing' if other is None else 'differs'}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about themselves: on the output, as warnings, in logs."""
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
    """Write a finished run's model in some formats, with a model card, so that the folder can be uploaded as it is.

    The run's folder may come from somebody else, as in `load`; no file of it is copied.

    Args:
        run: a run's folder; with `best` a sweep's or a cell's.
        formats: of `onnx`, `torch_export`, `safetensors`.
        out: the folder for the files; `export` in the run's unless given.
        best: see `load`.
        allow: see `load`.
        device: where the model computes while its figures are drawn; it is written and checked on the CPU.
        root: the folder of the data set's files, in place of the configuration's `data.root`.
        license: of the weights, as model hubs spell it.

    Raises:
        ExportError: if a format lacks its packages, or what is written is another model.
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
    place = folder / results.EXPORT if out is None else out
    if place.exists() and not place.is_dir():
        raise ExportError(f"--out: must be a folder, but {place} is a file")
    if place.exists() and place.resolve() == folder.resolve():
        raise ExportError(f"--out: {place} is the run's own folder; choose another one")
    # A lock in the export's own folder would be uploaded with it.
    with results.locked(folder) if out is None else contextlib.nullcontext() as owner:
        if owner is not None:
            raise ExportError(f"{folder} is in the hands of {owner}; export it when that has ended, or name --out")
        place.mkdir(parents=True, exist_ok=True)
        _check_same(place, result)
        return _export(folder, result, settings, model, place, formats, root, license)


def _export(
    folder: Path,
    result: results.Result,
    settings: Config,
    model: vae.VAE,
    place: Path,
    formats: Sequence[str],
    root: str | None,
    license: str,
) -> Exported:
    sentences = []
    figures, lacking = _figures(folder, model, place, root)
    if lacking:
        sentences.append(f"! the card has no reconstructions: {lacking}")
    console = Console(stderr=True)
    model.cpu().to(memory_format=torch.contiguous_format)  # formats know no other order of the values in memory
    for name in dict.fromkeys(formats):
        with console.status(f"writing {name}") if console.is_terminal else contextlib.nullcontext():
            if name == SAFETENSORS:
                export_weights(model, place)
                sentences.append(f"{results.WEIGHTS}: the weights, read again and equal to the model's")
                continue
            for file, difference in export_halves(model, name, place).items():
                sentences.append(f"{file}: read again, differs from the model by {difference:.1g} at most")
    written = [file for file in card.FILES if (place / file).is_file()]
    files = {results.WEIGHTS: _sum(place / results.WEIGHTS)} if results.WEIGHTS in written else {}
    container = _portable(settings)
    overrides = [one for one in result.overrides if not LOCAL.search(one)]
    results.write_config(place, container)
    results.write_result(place, result.model_copy(update={"files": files, "overrides": overrides}))
    text = card.card(
        card.Facts(
            result,
            container,
            model.image_shape or (),
            model.latent_dim,
            written,
            figures,
            license,
            model.posterior.outputs,
        )
    )
    results.write_text(place / card.CARD, text)
    return Exported(place, sentences)


def _portable(settings: Config) -> dict[str, Any]:
    """A configuration without the folders of the machine that it ran on."""
    container = settings.container() | {"logger": {}, "callbacks": {}}
    if "root" in container["data"]:
        container["data"]["root"] = "." if isinstance(settings.data, FolderConfig) else None
    return container


def _check_same(place: Path, result: results.Result) -> None:
    """That a folder holds no export of another run, which a card would be wrong about."""
    there = results.read_result(place)

    def identity(one: results.Result) -> tuple[Any, ...]:
        return one.config_sha256, one.seed, one.train, one.timing.train_seconds

    if there is not None and identity(there) != identity(result):
        raise ExportError(f"{place} holds the export of another run; choose another folder by --out, or remove it")


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _figures(folder: Path, model: vae.VAE, place: Path, root: str | None) -> tuple[list[str], str]:
    """Draw what the card shows; gives the files, and why there are no reconstructions if there are none."""
    test = sheets.TestImages(folder, root, model)
    drawn, lacking = [], ""
    for kind, file in FIGURES.items():
        try:
            pictures = sheets.draw(model, sheets.Wanted(kind, rows=1 if kind == "reconstructions" else 4), test)
        except (DataError, LoadError, sheets.SheetError, ValueError) as error:
            lacking = str(error)
            with contextlib.suppress(FileNotFoundError):
                (place / file).unlink()
            continue
        sheets.write_sheet(place / file, sheets.sheet(pictures))
        drawn.append(file)
    return drawn, lacking
