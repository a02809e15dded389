"""The table of a model says what its modules do."""

import os
import subprocess
from pathlib import Path

import forks
import pytest
import torch
from conftest import Command, Compose, at_most
from test_conf import VARIANTS
from torch.utils.flop_counter import FlopCounterMode

from vae_lab import config
from vae_lab.model import describe, match, vae

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("side", "variant"), VARIANTS)
def test_flops_and_shapes_are_those_of_a_real_pass(run_of: Compose, side: str, variant: str) -> None:
    settings = run_of(f"{side}={variant}", "latent.dim=16").config
    found = describe.describe(settings)
    model = vae.build(settings).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 1, 28, 28))
    assert found.flops == counter.get_total_flops()
    halves = {row.key: row for row in found.rows if row.level == 0}
    assert list(halves) == ["encoder", "posterior", "prior", "decoder", "likelihood"]
    assert sum(row.flops for row in halves.values()) == found.flops
    for half in ("encoder", "decoder"):
        module = getattr(model, half)
        assert halves[half].parameters == sum(parameter.numel() for parameter in module.parameters())
        steps = [row for row in found.rows if row.level == 1 and row.key.startswith(half)]
        assert sum(row.flops for row in steps) == halves[half].flops
        assert sum(row.parameters for row in steps) == halves[half].parameters
        x = torch.rand(2, 1, 28, 28) if half == "encoder" else torch.rand(2, 16)
        for block, row in zip(module.blocks, steps, strict=False):
            x = block(x)
            assert row.shape == x.shape[1:]


def test_a_table_names_the_keys_and_the_words_of_the_file(run_of: Compose) -> None:
    settings = run_of("encoder=resnet_128", "decoder=encdec_skip", "data.image_shape=[3,32,32]").config
    shown = describe.text(describe.describe(settings), "a note")
    for words in (
        "encoder.blocks[3].blocks[2]", "conv: 128, kernel 1", "torch.nn.ReLU", "encdec: 32, depth 2, skip true",
        "Conv2d 4×4 stride 2", "64×16×16", "DiagonalPosterior, 256", "StandardPrior", "decoder.head",
        "GaussianLikelihood", "3×32×32", "total", "a note", "flop_counter",
    ):  # fmt: skip
        assert words in shown
    assert max(map(len, shown.splitlines())) <= describe.WIDTH


class Whole(torch.nn.Module):
    """A user's own encoder."""

    def __init__(self, image_shape: list[int], num_parameters: int) -> None:
        super().__init__()
        self.flat = torch.nn.Flatten()
        self.onto = torch.nn.Linear(torch.Size(image_shape).numel(), num_parameters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.onto(self.flat(images))


def test_a_users_own_encoder_is_described_by_its_children(run_of: Compose) -> None:
    whole = run_of("latent.dim=4").config.container() | {"encoder": {"_target_": f"{__name__}.Whole"}}
    keys = [row.key for row in describe.describe(config.validate(whole)).rows]
    assert keys[:4] == ["encoder", "encoder.flat", "encoder.onto", "posterior"]


def call(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120"}
    return forks.run(ROOT / "scripts" / "describe.py", *words, cwd=folder, env=environment)


def test_the_command_takes_the_words_of_training(tmp_path: Path) -> None:
    (tmp_path / "conf/encoder").mkdir(parents=True)
    (tmp_path / "conf/encoder/mine.yaml").write_text("blocks:\n  - down: 8\n  - _target_: mine.Own\n")
    (tmp_path / "mine.py").write_text("from torch import nn\nclass Own(nn.Hardswish):\n    pass\n")
    done = call(
        "encoder=mine", "--config-dir", "conf", "match=parameters", "data.image_shape=[3,32,32]", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "mine.Own" in done.stdout
    assert "3×32×32" in done.stdout
    assert "% of the parameters of vanilla" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_the_command_does_little_work(command: Command) -> None:
    """A search for widths builds the halves many times, each on the meta device, and imports no Lightning."""
    with at_most(calls=10_000_000):
        done = command("describe", "decoder=conv_1024", "data.image_shape=[1,64,64]", "match=flops")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["encoder=nix"], "encoder: there is no choice 'nix'"),
        (["encoder=vanilla,mlp"], "describe shows one model"),
        (["-m", "encoder=vanilla"], "describe shows one model"),
        (["--fast"], "there is no flag --fast"),
        (["--config-dir", "nowhere"], "nowhere: there is no such folder"),
        (["latent.dim=0", "match=flops", "match.encoder=nix"], "match.encoder: there is no choice 'nix'"),
        (["encoder.blocks=[{down:4},{attention:3}]"], "encoder.blocks[1] of vanilla.yaml: 3 heads must share"),
    ],
)
def test_mistakes_are_reported_as_in_training(tmp_path: Path, words: list[str], shown: str) -> None:
    done = call(*words, folder=tmp_path)
    assert done.returncode == 1
    assert shown in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help(tmp_path: Path) -> None:
    assert "encoder=resnet" in call("--help", folder=tmp_path).stdout


def test_a_match_is_shown(run_of: Compose) -> None:
    settings = run_of("encoder=mlp", "match=flops").config
    assert describe.matching(settings, None) == ""
    assert "decoder: 100.0 % of the FLOPs of vanilla" in describe.matching(settings, match.matched(settings))
