"""Networks of blocks: any image size, and errors that name the block."""

import pytest
import torch
from torch import nn

from vae_lab.config.vocabulary import FitError
from vae_lab.model.networks import Decoder, Encoder

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 48, 40), (1, 17, 23), (2, 5, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_architecture_file_serves_any_image(shape: tuple[int, int, int]) -> None:
    images = torch.rand(2, *shape)
    encoder = Encoder(shape, 6, [{"conv": 4}, {"down": 4}, {"encdec": 3}, {"down": 8}, {"dense": 10}])
    decoder = Decoder(shape, 3, [{"dense": 10}, {"unflatten": 8}, {"up": 4}, {"encdec": 3}, {"up": 4}, {"conv": 2}])
    parameters = encoder(images)
    assert parameters.shape == (2, 6)
    outputs = decoder(parameters[:, :3])
    assert outputs.shape == images.shape
    assert outputs.min() < 0  # the likelihood brings them into [0, 1]


@pytest.mark.parametrize("ups", range(6))
def test_any_number_of_doublings_reaches_the_image(ups: int) -> None:
    decoder = Decoder((1, 28, 28), 3, [{"unflatten": 4}, *({"up": 4} for _ in range(ups))])
    assert decoder(torch.zeros(2, 3)).shape == (2, 1, 28, 28)


def test_a_decoder_without_a_map_ends_in_a_dense_layer() -> None:
    assert Decoder((3, 8, 6), 2, [{"dense": 16}])(torch.zeros(2, 2)).shape == (2, 3, 8, 6)


def test_the_hourglass_halves_and_restores() -> None:
    hourglass = Encoder((1, 14, 14), 2, [{"encdec": 5}]).blocks[0]
    x = torch.rand(2, 1, 14, 14)
    assert hourglass.encode(x).shape == (2, 5, 7, 7)
    assert hourglass(x).shape == x.shape


def test_any_torch_module_is_a_block() -> None:
    encoder = Encoder(
        (1, 8, 8),
        2,
        [
            {"down": 4},
            {"_target_": "torch.nn.Dropout2d", "p": 0.5},
            {"_target_": "torch.nn.MaxPool2d", "kernel_size": 2},
        ],
    )
    assert [type(block) for block in encoder.blocks[1:]] == [nn.Dropout2d, nn.MaxPool2d]
    assert encoder(torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_a_blocks_own_choices_go_before_the_networks() -> None:
    encoder = Encoder(
        (1, 8, 8), 2, [{"down": 4}, {"down": 4, "activation": "gelu", "normalization": "none"}], activation="relu"
    )
    first, second = encoder.blocks
    assert [type(layer) for layer in first] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(layer) for layer in second] == [nn.Conv2d, nn.GELU]
    assert first[0].bias is None  # the norm has one
    assert second[0].bias is not None


class Choosing(nn.Module):
    """Does what a block may not do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> object:
        return {"value": lambda: x if x.max() > 1 else -x, "index": lambda: x.argmax(1, True), "pair": lambda: (x, x)}[
            self.how
        ]()


@pytest.mark.parametrize("inside", [False, True])
def test_lazy_classes_have_their_weights_before_the_optimiser_asks_for_them(inside: bool) -> None:
    lazy = {"_target_": "torch.nn.LazyConv2d", "out_channels": 3, "kernel_size": 3}
    norm = {"_target_": "torch.nn.LazyBatchNorm2d"}
    given = [{"blocks": [lazy, norm]}] if inside else [lazy, norm]
    encoder = Encoder((1, 8, 8), 2, [{"down": 4}, *given])
    assert {type(part) for part in encoder.modules()} >= {nn.Conv2d, nn.BatchNorm2d}
    assert all(part.training for part in encoder.modules())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 36 + 8 + 111 + 6 + 26


def test_shape_inference_leaves_a_block_as_it_was() -> None:
    norm = Encoder((1, 8, 8), 2, [{"down": 4}]).blocks[0][1]
    assert norm.num_batches_tracked == 0
    assert norm.running_mean.abs().sum() == 0


@pytest.mark.parametrize(
    ("side", "blocks", "words"),
    [
        ("encoder", [{"down": 4}] * 6, ["encoder.blocks[5]", "4×1×1", "remove it"]),
        ("encoder", [*[{"down": 4}] * 5, {"encdec": 2}], ["encoder.blocks[5]", "'encdec' halves", "4×1×1"]),
        ("encoder", [{"dense": 4}, {"down": 4}], ["encoder.blocks[1]", "a vector of 4", "before 'dense'"]),
        ("encoder", [{"unflatten": 4}], ["encoder.blocks[0]", "1×28×28", "remove it"]),
        ("decoder", [{"up": 4}], ["decoder.blocks[0]", "a vector of 3", "'unflatten'"]),
        (
            "decoder",
            [{"unflatten": 4}, *[{"up": 4}] * 6],
            ["decoder.blocks[1]", "28×28", "5 doublings", "remove 1 'up'"],
        ),
        (
            "decoder",
            [{"unflatten": 4}, {"_target_": "torch.nn.MaxPool2d", "kernel_size": 2}],
            ["decoder.blocks: end with a map of 4×14×14", "28×28", "grows: 2"],
        ),
        (
            "encoder",
            [{"_target_": "torch.nn.Conv2d", "in_channels": 9, "out_channels": 1, "kernel_size": 1}],
            ["encoder.blocks[0]: 'torch.nn.Conv2d' does not take a map of 1×28×28", "change its arguments"],
        ),
        (
            "encoder",
            [{"_target_": "torch.nn.Conv2d"}],
            ["encoder.blocks[0]: 'torch.nn.Conv2d' cannot be built (TypeError", "in_channels", "a map of 1×28×28"],
        ),
        ("encoder", [{"_target_": f"{__name__}.Choosing", "how": "value"}], ["meta device", "depend on a value"]),
        ("encoder", [{"_target_": f"{__name__}.Choosing", "how": "index"}], ["makes int64 (2, 1, 28, 28)", "floating"]),
        ("encoder", [{"_target_": f"{__name__}.Choosing", "how": "pair"}], ["makes a tuple of a map of 1×28×28"]),
        ("encoder", [{"_target_": "torch.optim.Adam", "params": []}], ["encoder.blocks[0]"]),
        (
            "encoder",
            [{"_target_": "fractions.Fraction"}],
            ["encoder.blocks[0]", "must be a torch.nn.Module", "Fraction"],
        ),
        ("encoder", [{"_target_": "torch.nn.LSTM", "input_size": 28, "hidden_size": 4}], ["encoder.blocks[0]"]),
    ],
)
def test_errors_name_the_block_what_it_gets_and_a_way_out(side: str, blocks: list[dict], words: list[str]) -> None:
    with pytest.raises(FitError) as raised:
        Encoder((1, 28, 28), 6, blocks) if side == "encoder" else Decoder((1, 28, 28), 3, blocks)
    assert all(word in str(raised.value) for word in words), str(raised.value)
