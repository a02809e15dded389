"""A model as a table: its layers with their output shapes, parameters and FLOPs."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vae_lab import config
from vae_lab.config import Config, Network, Shape
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.match import Matched

WIDTH = 110


class Row(NamedTuple):
    """One line: a part of the model (`level` 0), a block of it (1) or a layer of a block (2 and more)."""

    level: int
    key: str
    layer: str
    shape: Shape | None
    parameters: int
    flops: int


class Description(NamedTuple):
    """A model's rows, and the totals that `result.json` also records."""

    image_shape: Shape
    rows: list[Row]
    parameters: int
    flops: int


def describe(settings: Config) -> Description:
    """Run one image through the model on the meta device, and record shape, parameters and FLOPs of each layer.

    `torch.utils.flop_counter` counts the FLOPs: two for each multiply-add of convolutions, matrix products and
    attention; norms, activations and sums are not counted.

    Raises:
        FitError: if a block does not fit.
    """
    with shapes_only():
        model = vae.build(settings).eval()
        shapes: dict[str, Shape] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(_shape_hook(name, shapes))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *settings.data.image_shape))
    root = type(model).__name__
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    rows = [
        Row(
            level,
            key,
            layer,
            shapes.get(name),
            sum(parameter.numel() for parameter in module.parameters()),
            flops.get(f"{root}.{name}", 0),
        )
        for level, key, layer, name, module in _modules(model, settings)
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    return Description(tuple(settings.data.image_shape), rows, total, counter.get_total_flops())


def _shape_hook(name: str, shapes: dict[str, Shape]) -> Any:
    def record(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape[1:])

    return record


class _Named(NamedTuple):
    level: int
    key: str
    layer: str
    name: str
    module: nn.Module


def _modules(model: vae.VAE, settings: Config) -> Iterator[_Named]:
    yield from _half("encoder", model.encoder, settings.encoder)
    shape = _product(model.latent_shape)
    yield _Named(0, "posterior", f"{type(model.posterior).__name__}, {shape}", "posterior", model.posterior)
    yield _Named(0, "prior", type(model.prior).__name__, "prior", model.prior)
    yield from _half("decoder", model.decoder, settings.decoder)
    yield _Named(0, "likelihood", type(model.likelihood).__name__, "likelihood", model.likelihood)


def _half(side: str, half: nn.Module, network: Any) -> Iterator[_Named]:
    yield _Named(0, side, type(half).__name__, side, half)
    if not isinstance(network, Network):
        for name, module in half.named_children():
            yield from _with_layers(1, f"{side}.{name}", _layer_text(module), f"{side}.{name}", module)
        return
    yield from _blocks(1, f"{side}.blocks", network.blocks, half.get_submodule("blocks"), f"{side}.blocks")
    yield from _with_layers(1, f"{side}.head", "head", f"{side}.head", half.get_submodule("head"))


def _blocks(level: int, key: str, blocks: Sequence[config.AnyBlock], modules: nn.Module, name: str) -> Iterator[_Named]:
    repeats = [(index, block) for index, block in enumerate(blocks) for _ in range(block.repeat)]
    for (index, block), (number, module) in zip(repeats, modules.named_children(), strict=True):
        here, inside = f"{key}[{index}]", f"{name}.{number}"
        if isinstance(block, config.Group):
            yield _Named(level, here, "blocks" + (", skip" if block.skip else ""), inside, module)
            body = module.get_submodule("body") if block.skip else module
            yield from _blocks(
                level + 1, f"{here}.blocks", block.blocks, body, inside + (".body" if block.skip else "")
            )
        else:
            yield from _with_layers(level, here, _block_text(block), inside, module)


def _with_layers(level: int, key: str, layer: str, name: str, module: nn.Module) -> Iterator[_Named]:
    yield _Named(level, key, layer, name, module)
    for inner, child in module.named_modules():
        if inner and not list(child.children()):
            yield _Named(level + 1, "", _layer_text(child), f"{name}.{inner}", child)


def _block_text(block: config.AnyBlock) -> str:
    """A block as in its line of YAML, without fields that have their default."""
    if isinstance(block, config.ForeignBlock):
        return block.target
    fields = type(block).model_fields
    others = [
        f"{key} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in block.model_dump().items()
        if key not in (block.word, "repeat") and value != fields[key].default
    ]
    return ", ".join([f"{block.word}: {block.value}", *others])


def _layer_text(module: nn.Module) -> str:
    """The class, and for convolutions kernel, stride and groups."""
    words = [type(module).__name__]
    for name, form in (("kernel_size", "{}"), ("stride", "stride {}"), ("groups", "groups {}")):
        value = getattr(module, name, 1)
        sides = value if isinstance(value, tuple) else (value, value)
        if name == "kernel_size" or sides != (1, 1):
            sizes = _product(sides) if name == "kernel_size" and isinstance(value, tuple) else str(sides[0])
            words += [form.format(sizes)] if hasattr(module, name) else []
    return " ".join(words)


def table(found: Description) -> Table:
    """The rows as a table; leaves out layers that have no parameters or FLOPs and keep the shape."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("key", no_wrap=True)
    shown.add_column("layer", overflow="fold")
    for heading in ("output", "parameters", "FLOPs"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_row("image", "", _product(found.image_shape), "", "", style="bold")
    before: Shape | None = found.image_shape
    for row in found.rows:
        is_layer = not row.key
        if is_layer and not row.parameters and not row.flops and row.shape in (before, None):
            continue
        style = "bold" if row.level == 0 else "dim" if is_layer else ""
        shown.add_row(
            Text(row.key),
            Text("  " * row.level + row.layer),
            _product(row.shape),
            f"{row.parameters:,}",
            f"{row.flops:,}",
            style=style,
        )
        before = row.shape or before
    shown.add_row("total", "", "", f"{found.parameters:,}", f"{found.flops:,}", style="bold")
    return shown


def _product(shape: Shape | None) -> str:
    return "" if shape is None else "×".join(map(str, shape))


def matching(settings: Config, found: Matched | None) -> str:
    """The cost ratio after matching, one line for each half; empty without matching."""
    if found is None:
        return ""
    match = settings.match
    unit = "parameters" if match.cost == "parameters" else "FLOPs"
    return "\n".join(
        f"{side}: {100 * ratio:.1f} % of the {unit} of {getattr(match, side)}" for side, ratio in found.ratios.items()
    )


def text(found: Description, note: str = "") -> str:
    """The output of the command as plain text, for a file."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    show(console, found, note)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines()) + "\n"


def show(console: Console, found: Description, note: str = "") -> None:
    """Print the table, the note and how FLOPs are counted."""
    console.print(table(found))
    if note:
        console.print(note, highlight=False, markup=False)
    console.print("FLOPs of one image forwards, as torch.utils.flop_counter counts them.", highlight=False)
