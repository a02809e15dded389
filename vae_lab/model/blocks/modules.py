"""The modules of blocks that are more than a short sequence of layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vae_lab.config import halved
from vae_lab.config.vocabulary import Shape, Style
from vae_lab.model.blocks.layers import act, convolution, convolve, norm, transposed


class Skip(nn.Module):
    """A block with a skip connection: x + body(x), or shortcut(x) + body(x) where the shape changes."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.after = nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.body(x))


class Hourglass(nn.Module):
    """The encoder-decoder block: a strided convolution halves the map, a transposed one restores it.

    (b, c, h, w) → (b, c, h, w) with `channels` in the middle, as in the published `encdec` models. Deeper blocks halve
    the map `depth` times, with `channels` at every size below the first. With `skip`, the map before halving is added
    to the restored map at each size (Newell et al. 2016).
    """

    def __init__(
        self, shape: Shape, channels: int, kernel: int, style: Style, depth: int = 1, *, skip: bool = False
    ) -> None:
        super().__init__()
        outer, *size = shape
        small = halved(tuple(size))
        self.encode = convolution(outer, channels, kernel, style, stride=2)
        self.inner = (
            Hourglass((channels, *small), channels, kernel, style, depth - 1, skip=skip) if depth > 1 else nn.Identity()
        )
        self.decode = transposed(channels, outer, kernel, style, small, tuple(size))
        self.skip = skip

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        restored = self.decode(self.inner(self.encode(x)))
        return x + restored if self.skip else restored


def residual(into: int, out: int, kernel: int, kind: str, style: Style, stride: int = 1) -> Skip:
    """A residual block: (b, into, h, w) → (b, out, ⌈h / stride⌉, ⌈w / stride⌉).

    Args:
        into: input channels.
        out: output channels. If they differ from the input channels, or with a stride, the shortcut is a 1×1
            convolution.
        kernel: kernel size of the convolutions other than 1×1.
        kind: `post` puts the activation after the sum; `bottleneck` does so too, with the kernel between two 1×1
            convolutions and a quarter of the channels, at least 2 (He et al. 2016, Deep residual learning); `pre` puts
            normalisation and activation before each convolution (He et al. 2016, Identity mappings).
        style: activation and normalisation.
        stride: stride of the first convolution that uses `kernel`.
    """
    same = into == out and stride == 1
    # The shortcut is normalised where the sum is activated, so that both terms have the same scale; under `pre` the sum
    # is the output and the shortcut is plain.
    plain = kind == "pre"
    shortcut: list[nn.Module] = [] if same else [convolve(into, out, 1, stride=stride, bias=plain or style.bias)]
    if not same and not plain:
        shortcut += norm(style, out)
    if plain:
        body = [
            *norm(style, into),
            *act(style),
            convolve(into, out, kernel, stride=stride, bias=style.bias),
            *norm(style, out),
            *act(style),
            convolve(out, out, kernel),
        ]
        return Skip(nn.Sequential(*body), nn.Sequential(*shortcut))
    if kind == "post":
        body = [
            *convolution(into, out, kernel, style, stride),
            convolve(out, out, kernel, bias=style.bias),
            *norm(style, out),
        ]
    else:
        inner = max(2, out // 4)
        body = [
            *convolution(into, inner, 1, style),
            *convolution(inner, inner, kernel, style, stride),
            convolve(inner, out, 1, bias=style.bias),
            *norm(style, out),
        ]
    return Skip(nn.Sequential(*body), nn.Sequential(*shortcut), nn.Sequential(*act(style)))


def convnext(into: int, out: int, kernel: int, expansion: int, style: Style) -> Skip:
    """A ConvNeXt block (Liu et al. 2022): (b, into, h, w) → (b, out, h, w).

    A depthwise convolution, normalisation, a 1×1 convolution to `expansion` times the channels, activation and a 1×1
    convolution back. The shortcut is x, or a 1×1 convolution where the channels change. The paper's layer scale is left
    out: it matters for much deeper networks only.
    """
    wide = expansion * out
    body = [
        convolve(into, into, kernel, groups=into, bias=style.bias),
        *norm(style, into),
        convolve(into, wide, 1),
        *act(style),
        convolve(wide, out, 1),
    ]
    return Skip(nn.Sequential(*body), None if into == out else convolve(into, out, 1))


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): multiplies each channel by a weight in (0, 1).

    (b, c, h, w) → (b, c, h, w); a layer of `channels / reduction` units computes the weights from all channels' means.
    """

    def __init__(self, channels: int, reduction: int, style: Style) -> None:
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            *act(style),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.weights(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) over the positions of a map, with a skip connection.

    (b, c, h, w) → (b, c, h, w). The input is normalised first. There is no position encoding: the convolutions before
    this block make positions distinguishable.
    """

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.Sequential(*norm(style, channels))
        # No bias: a bias of the keys would cancel in the softmax.
        self.queries_keys_values = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        projected = self.queries_keys_values(self.norm(x))
        # (b, 3c, h, w) → three of (b, heads, h·w, c / heads)
        q, k, v = projected.flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.output(attended.transpose(-1, -2).reshape(x.shape))


class GlobalPool(nn.Module):
    """Maximum or mean over all positions: (b, c, h, w) → (b, c)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return torch.amax(x, (2, 3)) if self.kind == "max" else torch.mean(x, (2, 3))

    def extra_repr(self) -> str:
        return self.kind
