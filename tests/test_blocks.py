"""Every word of the vocabulary: its module, its shapes, what it refuses."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_lab import config
from vae_lab.config import ConfigError
from vae_lab.config.vocabulary import FitError, Place, Style
from vae_lab.model.blocks import building
from vae_lab.model.blocks.attention import Attention
from vae_lab.model.blocks.layers import ACTIVATIONS, ChannelNorm, groups, shapes_only, transpose
from vae_lab.model.blocks.residual import Residual
from vae_lab.model.networks import Decoder, Encoder

MAP = (4, 9, 6)
# A block of each word, and what it makes of MAP in an encoder.
EXAMPLES: list[tuple[dict, tuple[int, ...]]] = [
    ({"conv": 6}, (6, 9, 6)),
    ({"conv": 6, "kernel": 5, "dilation": 2, "groups": 2}, (6, 9, 6)),
    ({"conv": 6, "stride": 3}, (6, 3, 2)),
    ({"conv": 6, "stride": 2, "kernel": 4}, (6, 4, 3)),
    ({"down": 6}, (6, 5, 3)),
    ({"down": 6, "kernel": 4}, (6, 4, 3)),
    ({"up": 6}, (6, 18, 12)),
    ({"up": 6, "kernel": 4}, (6, 18, 12)),
    ({"resize": 6}, (6, 18, 12)),
    ({"resize": 6, "mode": "bilinear"}, (6, 18, 12)),
    ({"pool": "max"}, (4, 5, 3)),
    ({"pool": "avg"}, (4, 5, 3)),
    ({"global_pool": "max"}, (4,)),
    ({"global_pool": "avg"}, (4,)),
    ({"encdec": 6}, MAP),
    ({"encdec": 6, "depth": 4, "skip": True}, MAP),
    ({"residual": 4}, MAP),
    ({"residual": 6, "stride": 2}, (6, 5, 3)),
    ({"residual": 4, "kind": "pre"}, MAP),
    ({"residual": 6, "kind": "pre", "stride": 2}, (6, 5, 3)),
    ({"residual": 6, "kind": "bottleneck"}, (6, 9, 6)),
    ({"depthwise": 6, "stride": 2}, (6, 5, 3)),
    ({"convnext": 4}, MAP),
    ({"convnext": 6, "kernel": 3, "expansion": 2}, (6, 9, 6)),
    ({"squeeze_excitation": 2}, MAP),
    ({"attention": 2}, MAP),
    ({"dropout": 0.5}, MAP),
    ({"dense": 6}, (6,)),
    ({"unflatten": 6}, (6, 1, 1)),
    ({"blocks": [{"down": 6}, {"conv": 3}]}, (3, 5, 3)),
    ({"blocks": [{"conv": 6}, {"conv": 4}], "skip": True}, MAP),
    ({"_target_": "torch.nn.PixelUnshuffle", "downscale_factor": 3}, (36, 3, 2)),
]


def encoder(*given: dict, **style: str) -> Encoder:
    return Encoder((1, 9, 6), 2, [{"conv": 4, "normalization": "none"}, *given], **style)


def without_gradient(module: nn.Module) -> list[str]:
    return [name for name, value in module.named_parameters() if value.grad is None or not value.grad.abs().sum()]


def test_each_word_has_a_schema_a_builder_and_an_example() -> None:
    assert all(
        word == "blocks" or "build" in vars(kind) for word, kind in config.BLOCKS.items()
    )  # networks build lists
    assert {config.block_name(example) for example, _ in EXAMPLES} == {*config.BLOCKS, "_target_"}


@pytest.mark.parametrize(("block", "shape"), EXAMPLES, ids=lambda value: str(value).replace(" ", ""))
def test_each_block_makes_the_shape_it_should_and_learns(block: dict, shape: tuple[int, ...]) -> None:
    before = [{"conv": 4}] if "unflatten" not in block else [{"dense": 4}]
    network = Encoder((1, 9, 6), 2, [*before, block])
    images = torch.rand(3, 1, 9, 6)
    assert network.blocks(images).shape[1:] == shape
    network(images).square().mean().backward()
    assert not without_gradient(network)


@pytest.mark.parametrize("normalization", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("word", ["conv", "residual", "depthwise", "encdec", "dense", "attention", "convnext"])
def test_every_normalisation_goes_with_every_block(word: str, normalization: str) -> None:
    network = encoder({word: 4, "normalization": normalization})
    network(torch.rand(3, 1, 9, 6)).square().mean().backward()
    assert not without_gradient(network)
    kinds = {"batch": (nn.BatchNorm1d, nn.BatchNorm2d), "group": nn.GroupNorm, "layer": nn.LayerNorm, "none": ()}
    norms = [module for module in network.blocks[1].modules() if "Norm" in type(module).__name__]
    assert bool(norms) == (normalization != "none")
    assert all(isinstance(norm, (*_tuple(kinds[normalization]), ChannelNorm)) for norm in norms)


def _tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(
    "block",
    [
        {"dense": 6}, {"conv": 6, "stride": 2}, {"down": 6}, {"up": 6}, {"resize": 6},
        {"encdec": 6, "depth": 2, "skip": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_gated_layer_makes_the_shape_of_any_other(block: dict, normalization: str) -> None:
    gated, plain = (
        encoder(block, activation=activation, normalization=normalization) for activation in ("gated", "relu")
    )
    images = torch.rand(3, 1, 9, 6)
    assert gated.blocks(images).shape == plain.blocks(images).shape
    gated(images).square().mean().backward()
    assert not without_gradient(gated)


def test_a_gate_is_the_sigmoid_of_a_second_layer() -> None:
    network = Encoder((1, 2, 3), 2, [{"dense": 5}], "gated", "none", initialization="he")
    images = torch.rand(4, 1, 2, 3)
    w, b = network.blocks[0][1].weight, network.blocks[0][1].bias
    x = images.flatten(1)
    expected = (x @ w[:5].T + b[:5]) * torch.sigmoid(x @ w[5:].T + b[5:])
    torch.testing.assert_close(network.blocks(images), expected)


@pytest.mark.parametrize(
    "block",
    [
        *({"residual": 4, "kind": kind} for kind in ("pre", "post", "bottleneck")),
        {"convnext": 4, "activation": "gated"},
    ],
    ids=str,
)
def test_blocks_without_a_layer_before_their_activation_have_no_gate(block: dict) -> None:
    with pytest.raises(FitError, match="gated is for blocks of one layer, such as dense, conv, down and up"):
        encoder(block, activation="gated")


@pytest.mark.parametrize("block", [{"conv": 4, "groups": 2}, {"depthwise": 4}], ids=str)
def test_groups_have_no_gate(block: dict) -> None:
    with pytest.raises(FitError, match="gated is for layers without groups"):
        encoder(block, activation="gated")


def test_weights_of_he_know_the_inputs_of_a_transposed_convolution() -> None:
    network = Decoder((1, 32, 32), 4, [{"unflatten": 64}, {"up": 8}], "relu", "none", initialization="he")
    (layer,) = (module for module in network.modules() if isinstance(module, nn.ConvTranspose2d))
    assert layer.weight.std().item() == pytest.approx((2 / layer.weight[:, 0].numel()) ** 0.5, rel=0.05)


@pytest.mark.parametrize("images", [(1, 40, 40), (1, 400, 400)])
def test_weights_of_he_have_variance_2_over_fan_in(images: tuple[int, ...]) -> None:
    network = Encoder(images, 50, [{"down": 8}, {"down": 100}, {"down": 8}], "relu", "none", initialization="he")
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(layers) == 4
    for layer in layers[1:]:  # the first has few weights
        weight = layer.weight * getattr(layer, "scale", 1.0)
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert layer.bias.std() < (2 / fan_in) ** 0.5  # torch's


@given(st.integers(1, 300))
def test_groups_share_the_channels_evenly_and_are_not_small(channels: int) -> None:
    count = groups(channels)
    assert channels % count == 0
    assert count == 1 or (channels // count >= 4 and count <= 32)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_transposed_convolution_of_any_kernel_doubles_or_ends_one_short(
    kernel: int, height: int, width: int, short: bool, narrow: bool
) -> None:
    end = (2 * height - short, 2 * width - narrow)
    with torch.device("meta"):
        assert transpose(1, 1, kernel, (height, width), end)(torch.empty(1, 1, height, width)).shape[2:] == end


def test_layer_normalisation_is_over_the_channels_of_each_position() -> None:
    x = torch.randn(2, 8, 3, 5)
    normal = ChannelNorm(8)(x)
    torch.testing.assert_close(normal.mean(1), torch.zeros(2, 3, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.var(1, unbiased=False), torch.ones(2, 3, 5), atol=1e-3, rtol=0)


def test_attention_is_that_of_torch() -> None:
    place = Place((8, 3, 4), Style("relu", "batch"))
    ours = building.build(Attention(attention=2, normalization="none"), place)
    theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.queries_keys_values.weight[:, :, 0, 0])
        theirs.out_proj.weight.copy_(ours.output.weight[:, :, 0, 0])
        ours.output.bias.zero_()
        x = torch.randn(2, 8, 3, 4)
        sequence = x.flatten(2).transpose(1, 2)
        expected = theirs(sequence, sequence, sequence)[0].transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(ours(x), x + expected)


def test_residual_blocks_keep_what_comes_in_where_their_convolutions_are_zero() -> None:
    x = torch.rand(2, 4, 5, 5)
    for kind in ("post", "pre", "bottleneck"):
        place = Place((4, 5, 5), Style("relu", "none"))
        block = building.build(Residual(residual=4, kind=kind), place)
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        torch.testing.assert_close(block(x), x)


def test_repeats_have_weights_of_their_own_and_lists_nest() -> None:
    network = encoder({"blocks": [{"conv": 4, "repeat": 2}, {"_target_": "torch.nn.ReLU"}], "repeat": 3, "skip": True})
    assert len(network.blocks) == 4
    weights = [module.weight.data_ptr() for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(weights) == len(set(weights)) == 1 + 3 * 2


def test_a_decoder_finds_its_sizes_through_lists_strides_and_classes_that_enlarge() -> None:
    decoder = Decoder(
        (1, 13, 9),
        3,
        [
            {"unflatten": 4},
            {"blocks": [{"up": 4}, {"pool": "max"}, {"resize": 4}], "repeat": 2},
            {"conv": 4, "stride": 2},
            {"down": 4},
            {"up": 4, "repeat": 2},
        ],
    )
    assert decoder(torch.zeros(2, 3)).shape == (2, 1, 13, 9)
    upsample = {"_target_": "torch.nn.Upsample", "scale_factor": 2, "grows": 2}
    decoder = Decoder((1, 12, 8), 3, [{"unflatten": 4}, upsample, {"conv": 4}], head="up")
    assert decoder.blocks[0](torch.zeros(2, 3)).shape == (2, 4, 3, 2)
    assert decoder(torch.zeros(2, 3)).shape == (2, 1, 12, 8)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"attention": 3}, ["3 heads must share the channels evenly", "4×9×6", "1, 2 or 4 would"]),
        ({"conv": 6, "groups": 4}, ["groups: 4 must divide the channels that it makes, but they are 6"]),
        ({"conv": 6, "groups": 3}, ["groups: 3 must divide the channels that come in, but they are 4"]),
        ({"encdec": 2, "depth": 5}, ["halves the map 5 times", "4×9×6", "take depth: 4 or less"]),
        (
            {"conv": 1, "normalization": "layer"},
            ["layer needs 2 channels or more", "take batch or none"],
        ),
        ({"dense": 1, "normalization": "group"}, ["normalization: group needs 2 channels or more"]),
        ({"blocks": [{"conv": 3}], "skip": True}, ["'skip: true' adds", "4×9×6", "3×9×6", "remove the skip"]),
        ({"down": 4, "repeat": 9}, ["'down' halves the map", "4×1×1", "(repeat 5 of 9)"]),
        ({"blocks": [{"conv": 4}, {"down": 4, "repeat": 5}]}, ["encoder.blocks[1].blocks[1]", "repeat 5 of 5"]),
        ({"_target_": "torch.nn.MaxPool2d", "kernel_size": 20}, ["'torch.nn.MaxPool2d' does not take a map of 4×9×6"]),
        ({"conv": 2**20, "kernel": 31, "repeat": 2}, ["1,056,", "weights for a map of 1048576×9×6", "(repeat 2 of 2)"]),
        ({"_target_": "torch.nn.Linear", "in_features": 9, "out_features": 2}, ["does not take"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_with_the_block_what_it_gets_and_a_way_out(block: dict, words: list[str]) -> None:
    with pytest.raises(FitError) as raised:
        encoder(block)
    assert str(raised.value).startswith("encoder.blocks[1]")
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(
    ("given", "head", "words"),
    [
        ([{"unflatten": 4}, {"down": 4, "repeat": 40}], "conv", ["decoder.blocks[1]", "remove some of them"]),
        ([{"unflatten": 4}, {"resize": 4, "repeat": 9}], "conv", ["9 'resize' blocks", "28×28", "remove 4 'resize'"]),
        ([{"unflatten": 4}, {"up": 4, "repeat": 5}], "up", ["decoder.blocks[1]", "5 'up'", "remove 1 'up'"]),
        ([{"dense": 4}], "up", ["decoder.head: 'up' doubles a map", "a vector of 4"]),
        ([{"unflatten": 4}, {"global_pool": "avg"}, {"up": 4}], "conv", ["decoder.blocks[2]", "or 'global_pool'"]),
        ([{"up": 4}, {"attention": 1}], "conv", ["decoder.blocks[0]", "'unflatten' before it"]),
    ],
    ids=str,
)
def test_what_does_not_fit_a_decoder(given: list[dict], head: str, words: list[str]) -> None:
    with pytest.raises(FitError) as raised:
        Decoder((1, 28, 28), 3, given, head=head)
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), *(make() for make in ACTIVATIONS.values())],
    ids=str,
)
def test_shapes_without_values_are_those_with_values(module: nn.Module) -> None:
    expected = module(torch.rand(2, 4, 3, 5))
    with shapes_only():
        found = module.to("meta")(torch.empty(2, 4, 3, 5))
    assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")


def test_shapes_that_batch_normalisation_refuses_are_refused_without_values() -> None:
    with shapes_only():
        with pytest.raises(RuntimeError, match="should contain 4 elements not 3"):
            nn.BatchNorm2d(3)(torch.empty(2, 4, 3, 5))
        with pytest.raises(ValueError, match="more than 1 value"):
            nn.BatchNorm1d(3)(torch.empty(1, 3))


def test_nothing_is_allocated_where_a_block_does_not_fit() -> None:
    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1))
            assert self.weight.device.type == "meta"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    globals()["Meta"] = Meta
    with pytest.raises(FitError, match=r"encoder.blocks\[2\]"):
        encoder({"_target_": f"{__name__}.Meta"}, {"attention": 3})


WIDTH = st.sampled_from([2, 4, 6])
KERNEL = st.sampled_from([1, 3, 5])
STYLE = {
    "activation": st.sampled_from(["leaky_relu", "relu", "elu", "gelu", "silu", "tanh", "none"]),
    "normalization": st.sampled_from(["batch", "group", "layer", "none"]),
}


def block_of(optional: dict[str, st.SearchStrategy], **required: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(required, optional=optional)


ON_A_MAP = st.one_of(
    block_of(STYLE | {"kernel": KERNEL, "dilation": st.integers(1, 2), "repeat": st.integers(1, 2)}, conv=WIDTH),
    block_of(STYLE | {"kernel": KERNEL, "skip": st.booleans()}, encdec=WIDTH),
    block_of(STYLE | {"kind": st.sampled_from(["post", "pre", "bottleneck"]), "repeat": st.just(2)}, residual=WIDTH),
    block_of(STYLE | {"kernel": KERNEL}, depthwise=WIDTH),
    block_of({"expansion": st.integers(1, 3), "kernel": KERNEL} | STYLE, convnext=WIDTH),
    block_of({"activation": STYLE["activation"]}, squeeze_excitation=st.integers(1, 8)),
    block_of({"normalization": STYLE["normalization"]}, attention=st.sampled_from([1, 2])),
    block_of({}, dropout=st.floats(0, 0.9)),
    st.just({"_target_": "torch.nn.Hardswish", "repeat": 2}),
)
SMALLER = st.one_of(
    block_of({"kernel": st.integers(1, 5)}, down=WIDTH), block_of({}, pool=st.sampled_from(["max", "avg"]))
)
LARGER = st.one_of(
    block_of({"kernel": st.integers(1, 5)}, up=WIDTH),
    block_of({"mode": st.sampled_from(["nearest", "bilinear"])}, resize=WIDTH),
)
FEW = st.lists(ON_A_MAP, max_size=2)


def trains(network: nn.Module, given: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    network(given).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


SIDE = st.integers(1, 12)


STRIDED = st.one_of(
    *(
        block_of({"kernel": st.integers(1, 6), "dilation": st.integers(1, 3), "stride": st.just(stride)}, conv=WIDTH)
        for stride in (2, 3)
    ),
    block_of({"kernel": KERNEL, "stride": st.integers(1, 4)}, residual=WIDTH),
    block_of({"kernel": st.integers(1, 6), "stride": st.integers(2, 4)}, depthwise=WIDTH),
    block_of({}, global_pool=st.sampled_from(["max", "avg"])),
    block_of({}, dense=WIDTH),
)


@given(st.one_of(ON_A_MAP, SMALLER, LARGER, STRIDED), SIDE, SIDE, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_what_a_word_makes_of_a_shape_is_what_its_module_makes_of_it(
    block: dict, height: int, width: int, in_decoder: bool, short: bool
) -> None:
    try:
        (word,) = config.parse_blocks("blocks", [block])
    except ConfigError:  # an even kernel without a stride
        return
    if isinstance(word, config.ForeignBlock):
        return
    end = (2 * height - short, 2 * width) if word.grows > 1 else (height, width)
    place = Place((4, height, width), Style("relu", "batch"), end if in_decoder else None)
    with torch.device("meta"):
        try:
            module = building.build(word, place)
        except FitError:
            return
        assert word.after(place.shape, place.size) == module(torch.empty(2, *place.shape)).shape[1:]


@given(FEW, SMALLER, FEW, st.lists(st.fixed_dictionaries({"dense": WIDTH}), max_size=2), st.fixed_dictionaries(STYLE))
@settings(max_examples=60, deadline=None)
def test_any_valid_encoder_trains(first: list, smaller: dict, second: list, dense: list, style: dict) -> None:
    network = Encoder((1, 11, 8), 4, [{"conv": 4}, *first, smaller, {"conv": 2}, *second, *dense], **style)
    trains(network, torch.rand(3, 1, 11, 8))


@given(FEW, LARGER, FEW, LARGER, st.sampled_from(["conv", "up"]), st.fixed_dictionaries(STYLE))
@settings(max_examples=60, deadline=None)
def test_any_valid_decoder_trains(first: list, larger: dict, second: list, last: dict, head: str, style: dict) -> None:
    network = Decoder((1, 11, 13), 3, [{"unflatten": 2}, *first, larger, *second, last], head=head, **style)
    trains(network, torch.rand(3, 3))


ANYTHING = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**20, 2**40]), st.floats(), st.booleans(), st.none(), st.text(max_size=3),
    st.lists(st.integers(), max_size=2), st.sampled_from(["max", "pre", "layer", "none", "nearest"]),
)  # fmt: skip
KEYS = [
    *config.BLOCKS, "_target_", "kernel", "stride", "dilation", "groups", "mode", "depth", "skip", "kind", "expansion",
    "repeat", "activation", "normalization", "grows",
]  # fmt: skip
SMALL_NUMBER = st.integers(1, 9)
ANY_BLOCK = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from([*config.BLOCKS]), SMALL_NUMBER, min_size=1, max_size=1),
    st.fixed_dictionaries({"conv": SMALL_NUMBER}, optional={"stride": SMALL_NUMBER, "groups": SMALL_NUMBER}),
    st.fixed_dictionaries({"encdec": SMALL_NUMBER}, optional={"depth": SMALL_NUMBER, "repeat": SMALL_NUMBER}),
    st.fixed_dictionaries(
        {"_target_": st.sampled_from(["torch.nn.ReLU", "torch.nn.Linear", "torch.nn.LSTM", "torch.cat", "no.such"])},
        optional={"repeat": ANYTHING, "in_features": ANYTHING, "inplace": ANYTHING},
    ),
    ANYTHING,
)
ANY_LIST = st.lists(
    st.one_of(ANY_BLOCK, st.fixed_dictionaries({"blocks": st.lists(ANY_BLOCK, max_size=3)})), max_size=4
)


@given(ANY_LIST, st.sampled_from(["encoder", "decoder"]), st.sampled_from(["layer", "group", "batch"]))
@settings(max_examples=200, deadline=None)
def test_anything_at_all_is_built_or_refused_in_our_words(given: list, side: str, normalization: str) -> None:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore", UserWarning)  # torch on tensors without elements
        try:
            if side == "encoder":
                Encoder((1, 8, 6), 4, given, normalization=normalization)
            else:
                Decoder((1, 8, 6), 3, [{"unflatten": 2}, *given], normalization=normalization)
        except (FitError, ConfigError) as error:
            told = str(error)
        else:
            return
    assert all(line.startswith(f"{side}.") for line in told.splitlines())
