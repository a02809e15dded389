"""Every likelihood, posterior and prior trains, resumes, loads, exports and is measured."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import Compose
from kills import check_resuming
from test_extensions import SMALL

import vae_lab
from vae_lab.config import ConfigError
from vae_lab.model import vae
from vae_lab.model.match import check_fit
from vae_lab.trained import export, sheets
from vae_lab.training import runner


class Combination(NamedTuple):
    """Parts that are trained together, and what the result says about them."""

    words: tuple[str, ...]
    nats: str | None = "real"
    divergence: str | None = "estimated"


COMBINATIONS = {
    "full, mixture, optimal": Combination(
        ("posterior=full", "prior=mixture", "objective=elbo", "likelihood.sigma=optimal", "metrics.iwae=[5]")
    ),
    "flow, vamp, logistic": Combination(
        ("posterior=flow", "prior=vamp", "prior.components=5", "objective=elbo", "likelihood=logistic"), "levels"
    ),
    "flow prior, continuous_bernoulli": Combination(
        ("prior=flow", "objective=elbo", "likelihood=continuous_bernoulli", "trainer.precision=bf16-mixed")
    ),
    "full, per_pixel": Combination(
        ("posterior=full", "objective=elbo", "likelihood.sigma=per_pixel"), divergence="exact"
    ),
    "point": Combination(("posterior=point", "objective=rae"), None, None),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_trains_resumes_loads_and_exports(run_of: Compose, tmp_path: Path, name: str) -> None:
    words, nats, divergence = COMBINATIONS[name]
    small = [*SMALL, "trainer.max_epochs=2", "data.num_train=40", "metrics.frechet=false"]
    whole, run = (run_of(*small, *words, f"name={name}") for name in ("whole", "killed"))
    check_fit(run.config)
    runner.check(run.config)
    _, result = check_resuming(whole, run)
    # What it is measured by, and what it cannot be.
    assert (result.nats, result.divergence) == (nats, divergence)
    test = result.test.model_dump()
    assert all(math.isfinite(test[one]) for one in ("total", "reconstruction", "mse", "active_units"))
    assert (test["elbo"] is None) == (nats is None)
    assert (test["mutual_information_low"] is None) == (divergence is None)
    assert test["kl_per_dimension"] is None
    size = result.model
    own = [size.posterior_parameters, size.prior_parameters, size.likelihood_parameters]
    assert size.parameters == size.encoder_parameters + size.decoder_parameters + sum(own)
    assert (own[1] > 0) == any(word in name for word in ("mixture", "vamp", "flow prior"))
    # It loads, samples and exports.
    model = vae_lab.load(run.directory)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(model.reconstruct(images), model.reconstruct(images))
    assert model.sample(3, seed=0).shape == (3, 1, 28, 28)
    exported = export.export(run.directory, ["torch_export", "safetensors"] if "vamp" in name else ["safetensors"])
    assert "torch.randn" not in (exported.folder / "README.md").read_text()  # the card of a prior that is not N(0, I)
    assert torch.equal(vae_lab.load(exported.folder).sample(2, seed=1), model.sample(2, seed=1))
    wanted = sheets.Wanted("pseudo_inputs", rows=1, columns=4)
    if "vamp" in name:
        assert "4 pseudo-inputs above" in sheets.generate(run.directory, wanted, tmp_path / "sheet.png")
        with pytest.raises(sheets.SheetError, match="must be at most the 5 pseudo-inputs"):
            sheets.generate(run.directory, dataclasses.replace(wanted, count=6, rows=None), tmp_path / "sheet.png")
    else:
        with pytest.raises(sheets.SheetError, match="the model's prior has none"):
            sheets.generate(run.directory, wanted, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    "words",
    [
        ("posterior=full", "likelihood=logistic"),
        ("posterior=flow", "likelihood=continuous_bernoulli"),
        ("likelihood.sigma=per_pixel",),
    ],
    ids=" ".join,
)
def test_every_distribution_is_the_same_in_onnx(run_of: Compose, tmp_path: Path, words: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = vae.build(run_of(*SMALL, "objective=elbo", *words).config).eval()
    assert max(export.export_halves(model, "onnx", tmp_path).values()) <= export.TOLERANCE


@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow"])
def test_a_prior_that_nothing_trains_is_refused(run_of: Compose, prior: str) -> None:
    with pytest.raises(ConfigError, match=r"^prior: .* is trained by a KL divergence, which .*PointPosterior lacks"):
        runner.check(run_of(*SMALL, "posterior=point", "objective=rae", f"prior={prior}").config)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prior=vamp", "prior.components=0"], "prior.components: must be at least 1, but is 0"),
        (["prior=flow", "prior.kind=cubic"], "prior.kind: must be 'spline' or 'affine', but is 'cubic'"),
        (["prior=flow", "prior.layers=1000"], "prior.layers: must be at most 64, but is 1000"),
        (["posterior=flow", "posterior.width=2.5"], "posterior.width: must be a whole number, but is 2.5"),
        (["posterior=full", "posterior.log_variance=[3,1]"], "posterior.log_variance: must be a lower and a higher"),
        (["likelihood=logistic"], "likelihood: must be vae_lab.GaussianLikelihood for the objective vae_lab.MseKl"),
        (["likelihood.sigma=optimal"], "likelihood.sigma: must be from_beta under objective=mse_kl"),
        (["likelihood.sigma=best", "objective=elbo"], "likelihood.sigma: must be"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_values_that_make_no_sense_are_refused(run_of: Compose, words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of(*words)
    assert sentence in str(raised.value)
