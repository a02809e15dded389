"""Draw the blocks that are more than a layer, for the guide: docs/pictures/blocks.png.

python scripts/draw_blocks.py
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

TARGET = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "blocks.png"
CONVOLUTION, NORM, ACTIVATION, OTHER = "#cfe2f3", "#eeeeee", "#fff2cc", "#d9ead3"

# Steps from the top down; then the step after the sum, or None without a skip connection.
Step = tuple[str, str]
BLOCKS: dict[str, tuple[list[Step], str | None]] = {
    "residual: N": (
        [
            ("conv 3×3, N", CONVOLUTION),
            ("norm, activation", NORM),
            ("conv 3×3, N", CONVOLUTION),
            ("norm", NORM),
        ],
        "activation",
    ),
    "residual: N, kind: pre": (
        [
            ("norm, activation", NORM),
            ("conv 3×3, N", CONVOLUTION),
            ("norm, activation", NORM),
            ("conv 3×3, N", CONVOLUTION),
        ],
        "",
    ),
    "residual: N, kind: bottleneck": (
        [
            ("conv 1×1, N/4", CONVOLUTION),
            ("norm, activation", NORM),
            ("conv 3×3, N/4", CONVOLUTION),
            ("norm, activation", NORM),
            ("conv 1×1, N", CONVOLUTION),
            ("norm", NORM),
        ],
        "activation",
    ),
    "convnext: N": (
        [
            ("depthwise 7×7", CONVOLUTION),
            ("layer norm", NORM),
            ("conv 1×1, 4N", CONVOLUTION),
            ("GELU", ACTIVATION),
            ("conv 1×1, N", CONVOLUTION),
        ],
        "",
    ),
    "depthwise: N": (
        [
            ("depthwise 3×3", CONVOLUTION),
            ("norm, activation", NORM),
            ("conv 1×1, N", CONVOLUTION),
            ("norm, activation", NORM),
        ],
        None,
    ),
    "encdec: N, depth: 2, skip: true": (
        [
            ("conv 3×3, N, half", CONVOLUTION),
            ("conv 3×3, N, quarter", CONVOLUTION),
            ("transposed, N, half", CONVOLUTION),
            ("transposed, full", CONVOLUTION),
        ],
        "",
    ),
    "squeeze_excitation: r": (
        [
            ("mean of each channel", OTHER),
            ("dense, C/r", CONVOLUTION),
            ("activation", ACTIVATION),
            ("dense, C", CONVOLUTION),
            ("sigmoid", ACTIVATION),
        ],
        "×",
    ),
    "attention: heads": (
        [
            ("layer norm", NORM),
            ("queries, keys, values", CONVOLUTION),
            ("softmax(q·k) v", OTHER),
            ("conv 1×1, C", CONVOLUTION),
        ],
        "",
    ),
}


def draw(axes: Axes, name: str, steps: list[Step], after: str | None, lowest: float) -> None:
    """Draw one block: its steps from the top down, the skip connection, and the step after the sum."""
    axes.set_title(name, fontsize=9, family="monospace")
    axes.set(xlim=(-1.15, 1.45), ylim=(lowest, 0.6))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "lw": 1, "color": "black"}
    y = 0.0
    axes.annotate("", (0, y - 0.55), (0, y + 0.3), arrowprops=arrow)
    levels = []
    for label, colour in steps:
        y -= 1.0
        levels.append(y)
        axes.text(
            0, y, label, ha="center", va="center", fontsize=7.5,
            bbox={"boxstyle": "square,pad=0.35", "fc": colour, "ec": "black", "lw": 0.6},
        )  # fmt: skip
        axes.annotate("", (0, y - 0.65), (0, y - 0.28), arrowprops=arrow)
    if after is not None:
        end = y - 1.0
        sign = after if after == "×" else "+"
        _around(axes, -0.1, end, 1.15)
        if name.startswith("encdec"):
            axes.text(0, levels[2] - 0.5, "+", ha="center", va="center", fontsize=9, bbox=_circle())
            _around(axes, levels[0] - 0.5, levels[2] - 0.5, 0.85)
        axes.text(0, end, sign, ha="center", va="center", fontsize=9, bbox=_circle())
        axes.annotate("", (0, end - 0.7), (0, end - 0.28), arrowprops=arrow)
        if after not in ("", "×"):
            axes.text(
                0, end - 0.95, after, ha="center", va="center", fontsize=7.5,
                bbox={"boxstyle": "square,pad=0.35", "fc": ACTIVATION, "ec": "black", "lw": 0.6},
            )  # fmt: skip


def _around(axes: Axes, start: float, end: float, x: float) -> None:
    axes.plot([0, x, x], [start, start, end], color="black", lw=1)
    axes.annotate("", (0.16, end), (x, end), arrowprops={"arrowstyle": "-|>", "lw": 1, "color": "black"})


def _circle() -> dict[str, object]:
    return {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 0.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET, help="the file (default: that of the guide)")
    target = parser.parse_args().target
    lowest = (-8.3, -6.9)  # of each row
    ratios = {"height_ratios": [0.6 - end for end in lowest]}
    figure, grid = plt.subplots(2, 4, figsize=(11.5, 7.6), constrained_layout=True, gridspec_kw=ratios)
    for index, (axes, (name, (steps, after))) in enumerate(zip(grid.flat, BLOCKS.items(), strict=True)):
        draw(axes, name, steps, after, lowest[index // 4])
    figure.savefig(target, dpi=110)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
