"""Random numbers that are the same on every device, and for any number of processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWING: dict[Any, str] = {
    torch.randn: "shape",
    torch.rand: "shape",
    torch.randn_like: "like",
    torch.rand_like: "like",
    Tensor.normal_: "in place",
    Tensor.uniform_: "in place",
    Tensor.exponential_: "in place",
    Tensor.cauchy_: "in place",
    Tensor.log_normal_: "in place",
    Tensor.geometric_: "in place",
    torch.normal: "arguments",
    torch.bernoulli: "arguments",
    torch.multinomial: "arguments",
    torch.poisson: "arguments",
}


class drawn_from(TorchFunctionMode):  # noqa: N801  # lower case because it is used as: with drawn_from(generator)
    """A context in which random numbers come from one generator, on any device.

    It covers what `torch.distributions` mostly draws with: randn, rand, randn_like, rand_like, normal, bernoulli,
    multinomial and poisson, and in place normal_, uniform_, exponential_, cauchy_, log_normal_ and geometric_. If
    several processes share a batch, each draws for the whole batch and takes its own rows. An image thus gets the same
    numbers as in a single process, except from normal, bernoulli, multinomial and poisson.

    Args:
        generator: the random stream; a generator on the CPU gives the same numbers for every device.
        rows: this process's rows of the batch; None if it has the whole batch.
        of: number of images in the whole batch.
        events: number of dimensions of one z, after the batch dimension.
    """

    def __init__(
        self, generator: torch.Generator, rows: slice | None = None, of: int | None = None, events: int = 1
    ) -> None:
        super().__init__()
        self.generator = generator
        self.rows = rows
        self.of = of
        self.events = events

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        kind = _DRAWING.get(func)
        if kind is None or named.get("generator") is not None:
            return func(*args, **named)
        if kind == "arguments":
            tensors = [one for one in (*args, *named.values()) if isinstance(one, Tensor)]
            device: Any = tensors[0].device if tensors else named.pop("device", None) or "cpu"
            moved = [self._here(one) for one in args]
            return func(*moved, **{name: self._here(one) for name, one in named.items()}, generator=self.generator).to(
                device
            )
        if kind == "in place":
            named["generator"] = self.generator
            drawn = self._drawn(tuple(args[0].shape), args[0].dtype, lambda one: func(one, *args[1:], **named))
            return args[0].copy_(drawn)
        if kind == "like":
            shape, dtype = tuple(args[0].shape), named.get("dtype") or args[0].dtype
            device = args[0].device
            draw = Tensor.normal_ if func is torch.randn_like else Tensor.uniform_
        else:
            sizes = args if args else (named["size"],)
            shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
            dtype, device = named.get("dtype") or torch.get_default_dtype(), named.get("device") or "cpu"
            draw = Tensor.normal_ if func is torch.randn else Tensor.uniform_
        return self._drawn(shape, dtype, lambda one: draw(one, generator=self.generator)).to(device)

    def _here(self, one: Any) -> Any:
        return one.to(self.generator.device) if isinstance(one, Tensor) else one

    def _drawn(self, shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[[Tensor], Tensor]) -> Tensor:
        dim = len(shape) - self.events - 1  # of the batch
        if self.rows is None or self.of is None or dim < 0 or shape[dim] != self.rows.stop - self.rows.start:
            return fill(torch.empty(shape, dtype=dtype, device=self.generator.device))
        whole = fill(torch.empty((*shape[:dim], self.of, *shape[dim + 1 :]), dtype=dtype, device=self.generator.device))
        return whole.narrow(dim, self.rows.start, shape[dim])
