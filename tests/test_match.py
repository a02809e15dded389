"""Variants brought to the cost of a reference."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import Compose

from vae_lab import config
from vae_lab.config import ConfigError
from vae_lab.model import match, vae
from vae_lab.model.describe import describe
from vae_lab.training import plan, runner

SMALL = (
    "latent.dim=8", "data.num_train=64", "data.num_val=16", "data.num_test=16", "trainer.max_epochs=1",
    "trainer.threads=1", "logger=csv", "callbacks=quiet", "name=test",
)  # fmt: skip
HALVES = [
    *(
        ("encoder", name)
        for name in ("mlp", "resnet", "convnext", "attention", "encdec_skip", "conv_1024", "resnet_128")
    ),
    *(("decoder", name) for name in ("mlp", "resnet", "convnext", "attention", "resize", "conv_1024", "resnet_128")),
]


def costs(settings: config.Config) -> dict[str, int]:
    rows = {row.key: row for row in describe(settings).rows if row.level == 0}
    cost = "parameters" if settings.match.cost == "parameters" else "flops"
    return {side: getattr(rows[side], cost) for side in ("encoder", "decoder")}


@pytest.mark.parametrize("cost", ["parameters", "flops"])
@pytest.mark.parametrize(("side", "variant"), HALVES)
def test_a_variant_costs_what_the_reference_does(run_of: Compose, side: str, variant: str, cost: str) -> None:
    settings = run_of(f"{side}={variant}", f"match={cost}").config
    found = match.matched(settings)
    assert found is not None
    wanted, got = costs(run_of(f"match={cost}").config), costs(found.config)
    for half in ("encoder", "decoder"):
        assert got[half] / wanted[half] == pytest.approx(found.ratios[half])
        assert found.ratios[half] == pytest.approx(1, abs=0.02)
    match._half.cache_clear()
    assert match.matched(settings) == found


def test_the_reference_itself_stays_as_it_is(run_of: Compose) -> None:
    settings = run_of("match=flops").config
    found = match.matched(settings)
    assert found is not None
    assert (found.config.encoder, found.config.decoder) == (settings.encoder, settings.decoder)
    assert found.ratios == {"encoder": 1, "decoder": 1}
    assert match.matched(run_of().config) is None


def test_widths_stay_multiples_of_heads_and_groups(run_of: Compose) -> None:
    blocks = "[{conv: 16, stride: 2},{attention: 8},{conv: 24, groups: 4, stride: 2},{encdec: 10},{attention: 2}]"
    settings = run_of(f"encoder.blocks={blocks}", "match=parameters").config
    found = match.matched(settings)
    assert found is not None
    assert isinstance(found.config.encoder, config.Network)
    first, _, third, inner, _ = (block.value for block in found.config.encoder.blocks)
    assert first % 8 == 0
    assert third % 4 == 0
    assert inner != 10


def test_widths_keep_the_two_channels_that_a_norm_needs(run_of: Compose) -> None:
    blocks = "[{conv: 64, normalization: layer},{conv: 2, normalization: group},{down: 1},{residual: 64}]"
    settings = run_of(f"encoder.blocks={blocks}", "match=flops", "match.tolerance=0.1").config
    found = match.matched(settings)
    assert found is not None
    assert isinstance(found.config.encoder, config.Network)
    first, second, third, _ = (block.value for block in found.config.encoder.blocks)
    assert 2 <= first < 64
    assert second == 2
    assert third == 1


def test_another_reference_and_its_own_words(run_of: Compose) -> None:
    settings = run_of("match=parameters", "match.encoder=mlp_512", "encoder.blocks=[{dense:8}]", "latent.dim=32").config
    assert settings.match.references is not None
    assert settings.match.references.encoder.model_dump()["blocks"] == [{"dense": 512}]  # not those of the command line
    found = match.matched(settings)
    assert found is not None
    assert found.ratios["encoder"] == pytest.approx(1, abs=0.02)


def test_a_match_identifies_a_run_by_what_was_asked_for(run_of: Compose) -> None:
    plain, matched = run_of("name=x"), run_of("name=x", "match=parameters")
    assert matched.cell == "vanilla-vanilla__match-parameters"
    assert plain.config.sha256() != matched.config.sha256()
    assert "match" not in plain.config.container()
    assert run_of("match=parameters", "match.encoder=mlp").config.sha256() != matched.config.sha256()


def test_a_matched_run_leaves_what_rebuilds_it(run_of: Compose) -> None:
    run = run_of("encoder=mlp", "match=parameters", *SMALL)
    result = runner.run(run)
    assert result.finished, result.error
    assert plan.finished(run) is not None
    stored = yaml.safe_load((run.directory / "config.yaml").read_text())
    again = config.validate(stored)
    assert stored["encoder"]["blocks"][0]["dense"] != 256
    assert stored["match"]["references"]["encoder"]["blocks"] == [{"down": 16, "kernel": 3}, {"down": 32, "kernel": 3}]
    parameters = sum(parameter.numel() for parameter in vae.build(again).encoder.parameters())
    assert parameters == result.model.encoder_parameters
    recorded = json.loads((run.directory / "result.json").read_text())["model"]["match"]
    assert recorded == {"cost": "parameters", "encoder": "vanilla", "decoder": "vanilla"} | {
        "encoder_ratio": pytest.approx(1, abs=0.02),
        "decoder_ratio": 1,
    }
    table = (run.directory / "model.txt").read_text()
    assert f"dense: {stored['encoder']['blocks'][0]['dense']}" in table
    assert "% of the parameters of vanilla" in table


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (
            ["decoder=mlp", "match.decoder=resnet", "match.tolerance=0.000001"],
            "decoder",
            ["within 0.0001 % of the", "parameters of 'resnet'; the nearest is", "with widths 256→", "tolerance=0.001"],
        ),
        (["encoder.blocks=[{dropout:0.1}]"], "encoder", ["as it is, since it has no widths", "match.encoder=…"]),
        (
            ["encoder.blocks=[{conv:4},{_target_:torch.nn.Conv2d,in_channels:4,out_channels:4,kernel_size:1}]"],
            "encoder.blocks[1]",
            ["with the widths that match tries (4→", "named by _target_ stay as they are"],
        ),
    ],
)
def test_what_cannot_be_matched_is_reported_before_training(
    run_of: Compose, overrides: list[str], key: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        match.check_fit(run_of("match=parameters", *overrides).config)
    assert raised.value.problems[0].key == key
    assert all(word in raised.value.problems[0].text for word in words), str(raised.value)


def test_a_reference_that_does_not_exist(run_of: Compose) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of("match=flops", "match.encoder=nix", "match.decoder=vanila", "latent.dim=0")
    problems = dict(raised.value.problems)
    assert set(problems) == {"match.encoder", "match.decoder", "latent.dim"}
    assert "did you mean 'vanilla'?" in problems["match.decoder"]


def test_a_reference_from_a_folder_of_the_users(run_of: Compose, tmp_path: Path) -> None:
    (tmp_path / "mine/encoder").mkdir(parents=True)
    (tmp_path / "mine/encoder/tiny.yaml").write_text("blocks:\n  - dense: 20\n")
    run = run_of(f"hydra.searchpath=[file://{tmp_path}/mine]", "encoder=mlp", "match=parameters", "match.encoder=tiny")
    found = match.matched(run.config)
    assert found is not None
    assert found.ratios["encoder"] == pytest.approx(1, abs=0.02)
