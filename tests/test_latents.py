"""Codes that are maps, and codes of a codebook: distributions, networks, and what is computed of a model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from kills import check_resuming
from runs import settings
from torch import Tensor, nn

import vae_lab
from vae_lab import config
from vae_lab.config import Config, ConfigError
from vae_lab.evaluation.latent_space import use_of_codebook
from vae_lab.evaluation.likelihood import importance_weighted
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.distributions import divergence
from vae_lab.model.interfaces import Posterior
from vae_lab.model.match import check_fit
from vae_lab.model.posteriors.fsq import FsqPosterior
from vae_lab.model.posteriors.lfq import LfqPosterior
from vae_lab.model.posteriors.vq import VqPosterior
from vae_lab.model.quantized import Quantized, QuantizedPosterior, as_map
from vae_lab.trained import export, sheets
from vae_lab.training import parts

SHAPE = (2, 3, 2)
DIM = 12
BLOCKS = ("encoder.blocks=[{down:4},{down:4}]", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]")


def of(*words: str) -> Config:
    return settings(("name=x", "latent=map", *words)).config


def with_shape(shape: Any, *words: str) -> Config:
    """The same with another `latent.shape`, without Hydra."""
    container = of(*words).container()
    likelihood = container["likelihood"] | {"sigma": "auto"}
    return config.validate(container | {"latent": container["latent"] | {"shape": shape}, "likelihood": likelihood})


def part(family: str, choice: str, shape: tuple[int, ...]) -> Any:
    node = getattr(of(f"{family}={choice}", "objective=mmd" if choice == "point" else "objective=elbo"), family)
    return config.build(node, latent_shape=list(shape))


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> tuple[Posterior, Posterior]:
    """The same posterior over maps and over the flattened codes."""
    torch.manual_seed(0)
    over_maps, over_vectors = (part("posterior", request.param, shape) for shape in (SHAPE, (DIM,)))
    over_vectors.load_state_dict(over_maps.state_dict())
    return over_maps, over_vectors


DENSITIES = ("diagonal", "full", "flow")


@pytest.mark.parametrize("pair", DENSITIES, indirect=True)
@pytest.mark.parametrize("prior", ["standard", "flow", "mixture"])
def test_a_posterior_over_maps_is_that_over_the_flattened_codes(pair: tuple[Posterior, Posterior], prior: str) -> None:
    maps, vectors = pair
    parameters = torch.randn(4, maps.num_parameters(SHAPE))
    q, flat = maps(parameters), vectors(parameters)
    assert (q.batch_shape, q.event_shape) == ((4,), SHAPE)
    torch.manual_seed(1)
    z = q.rsample((5,))
    torch.manual_seed(1)
    assert torch.equal(z.flatten(2), flat.rsample((5,)))
    assert torch.equal(q.mean.flatten(1), flat.mean)
    assert torch.allclose(q.log_prob(z), flat.log_prob(z.flatten(2)), atol=1e-5)
    assert torch.allclose(q.log_prob(z[0, 0]), flat.log_prob(z[0, 0].flatten()), atol=1e-5)
    torch.manual_seed(2)
    p = part("prior", prior, SHAPE)
    torch.manual_seed(2)
    of_vectors = part("prior", prior, (DIM,))
    of_vectors.load_state_dict({name: one.reshape(of_vectors.state_dict()[name].shape)
                                for name, one in p.state_dict().items()})  # fmt: skip
    kl, wanted = divergence(q, p(), z[0]), divergence(flat, of_vectors(), z[0].flatten(1))
    assert kl.is_exact == wanted.is_exact
    assert torch.allclose(kl.nats, wanted.nats, atol=1e-4)
    assert p().sample((7,)).shape == (7, *SHAPE)


@pytest.mark.parametrize("pair", ["diagonal", "full"], indirect=True)
def test_variance_covariance_and_entropy_are_those_of_the_flattened_codes(pair: tuple[Posterior, Posterior]) -> None:
    q, flat = (one(torch.randn(3, one.num_parameters(SHAPE), generator=torch.Generator().manual_seed(0)))
               for one in pair)  # fmt: skip
    assert torch.equal(q.variance.flatten(1), flat.variance)
    assert torch.allclose(q.entropy(), flat.entropy(), atol=1e-5)
    name = "covariance_matrix"
    assert hasattr(q, name) == hasattr(flat, name)
    assert not hasattr(q, name) or torch.equal(getattr(q, name), getattr(flat, name))


def test_channels_of_the_last_convolution_are_means_then_log_variances() -> None:
    model = vae.build(of("latent.shape=[3,7,7]", *BLOCKS)).eval()
    convolution, flatten = model.encoder.head
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(flatten, nn.Flatten)
    images = torch.rand(2, 1, 28, 28)
    last = convolution(model.encoder.blocks(images))
    q = model.encode(images)
    assert torch.equal(q.mean, last[:, :3])
    assert torch.allclose(q.log_variance, last[:, 3:])


@pytest.mark.parametrize(("shape", "words"), [
    ([4, 7, 7], ()), ([1, 7, 7], ("posterior=full", "encoder=mlp")), ([4, 7, 7], ("decoder=mlp",)),
    ([4, 7, 7], ("encoder=convnext", "decoder=resize")), ([2, 12, 10], ("data.image_shape=[3,48,40]",)),
    ([4, 7, 7], ("encoder=encdec", "match=parameters", "decoder.blocks=[{blocks:[{unflatten:8},{up:8}]},{up:8}]")),
    ([4, 7, 7], ("decoder.blocks=[{conv:8},{global_pool:max},{unflatten:8},{up:8},{up:8}]",)),
    ([1, 7, 7], ("posterior=full", "prior=vamp", "objective=dip")), ([4, 7, 7], ("objective=beta_tc",)),
    ([2, 7, 7], ("objective=iwae", "posterior=flow", "prior=flow")), ([2, 7, 7], ("objective=rae", "posterior=point")),
], ids=str)  # fmt: skip
def test_networks_distributions_and_objectives_take_maps(shape: list[int], words: tuple[str, ...]) -> None:
    chosen = with_shape(shape, *words)
    check_fit(chosen)
    with shapes_only():
        parts.check(chosen)


@pytest.mark.parametrize(("shape", "words", "problem"), [
    ([4, 14, 14], (), "encoder.blocks: end with a map of 32×7×7, .* take latent.shape=.4,7,7., or remove a 'down'"),
    ([4, 4, 4], (), "take latent.shape=.4,7,7., or add a 'down'"),
    ([4, 7, 7], ("data.image_shape=[3,48,40]",), "take latent.shape=.4,12,10."),
    ([4, 7, 7], ("decoder=mlp", "encoder=mlp"), "encoder.blocks: end with a vector of 256, .* take latent=vector"),
    ([1, 5, 5], ("posterior=full", "encoder=mlp"), "decoder.blocks: reach .* maps of 7×7, .* latent.shape=.1,7,7."),
    ([4, 7, 7], ("decoder.blocks=[{conv:8},{up:8}]",), "decoder.blocks: reach the image from maps of 14×14"),
    ([4, 7, 7], ("decoder.blocks=[{unflatten:8},{unflatten:8},{up:8},{up:8}]",), "'unflatten' makes a map of a vector"),
    *((bad, (), "latent.shape: must be channels, height and width, .* at most 1,048,576, but is")
      for bad in ([4, 7], [4, 0, 7], 7, [4, 70000, 70000], [4, 7, True], [4, 7, 7.0])),
], ids=str)  # fmt: skip
def test_maps_that_do_not_meet_are_refused(shape: Any, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_fit(with_shape(shape, *words))


SMALL = (
    "data.num_train=60", "data.num_val=20", "data.num_test=20", "data.batch_size=20", "trainer.max_epochs=3",
    "trainer.threads=1", "trainer.precision=32-true", "callbacks.pages.points=5", "callbacks.pictures.images=4",
    *BLOCKS, "metrics.iwae=[2]", "metrics.samplers=true",
)  # fmt: skip


@pytest.mark.parametrize("latent", ["map", "vq"])
def test_a_run_does_everything_with_other_codes_than_vectors(run_of: Compose, tmp_path: Path, latent: str) -> None:
    words = (f"latent={latent}", *SMALL)
    _, result = check_resuming(run_of(*words, "name=whole"), run := run_of(*words, "name=killed"))
    assert not [text for text in result.warnings if "not computed" in text or "could not" in text]
    assert result.divergence == "exact"
    test = result.test.model_dump()
    model = vae_lab.load(run.directory)
    figures = ("rate_bits", "codebook_used", "codebook_perplexity") if latent == "vq" else ("fid_samples_mixture",)
    assert all(isinstance(test[name], float) for name in ("elbo", "iwae_2", *figures))
    if latent == "vq":
        assert "commitment" in result.terms
        assert test["rate_bits"] == 49 * 9
        assert test["iwae_2"] == pytest.approx(test["elbo"], rel=1e-4)
        assert test["kl_per_dimension"] is test["active_units"] is test["fid_samples_mixture"] is None
        sheets.generate(run.directory, sheets.Wanted("codebook"), tmp_path / "codebook.png")
        with pytest.raises(sheets.SheetError, match="at most the 512 codes of the model, but is 600"):
            sheets.generate(run.directory, sheets.Wanted("codebook", count=600), tmp_path / "codebook.png")
    else:
        assert set(result.terms) == {"total", "reconstruction", "kl"}
        assert len(test["kl_per_dimension"]) == model.latent_dim
        assert test["rate_bits"] is None
    images = torch.rand(2, 1, 28, 28)
    assert model.encode(images).mean.shape == (2, *model.latent_shape)
    assert model.interpolate(*images, 3).shape == (3, 1, 28, 28)
    walk = model.traverse(images[0], [0, model.latent_dim - 1], steps=2)
    assert walk.shape == (2, 2, 1, 28, 28)
    z = model.encode(images[:1]).mean.clone()
    z[0, -1, -1, -1] = -3.0
    assert torch.allclose(walk[1, 0], model.decode(z)[0], atol=1e-6)
    for kind in ("interpolation", "traversal", "manifold"):
        sheets.generate(run.directory, sheets.Wanted(kind, rows=2, columns=2), tmp_path / f"{kind}.png")
    exported = export.export(run.directory, ["torch_export"], tmp_path / "export")
    shape = ", ".join(map(str, model.latent_shape))
    assert f"# mean: (3, {shape})" in (exported.folder / "README.md").read_text()


# --- Codes of a codebook -----------------------------------------------------------------------------------


QUANTIZERS = ("vq", "fsq", "lfq")
SIZES = {"vq": 512, "fsq": 1000, "lfq": 1024}


@pytest.fixture
def quantized(request: pytest.FixtureRequest) -> vae.VAE:
    """A model of `latent=vq`, `fsq` or `lfq`, in training mode."""
    torch.manual_seed(0)
    return vae.build(settings((f"latent={request.param}", "objective=elbo", "name=x", *BLOCKS)).config)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


each = pytest.mark.parametrize("quantized", QUANTIZERS, indirect=True)


@each
def test_z_is_the_codes_of_its_indices_in_each_position(quantized: vae.VAE, request: pytest.FixtureRequest) -> None:
    posterior = quantized.posterior
    assert isinstance(posterior, QuantizedPosterior)
    parameters = torch.randn(3, posterior.num_parameters(posterior.latent_shape))
    for train in (True, False):
        q = posterior.train(train)(parameters)
        codes = posterior.codebook
        assert len(codes) == SIZES[request.node.callspec.params["quantized"]] == len(codes.unique(dim=0))
        if not train:  # a step of training moves the codes
            assert torch.allclose(q.mean, as_map(codes, q.indices, 2), atol=1e-6)
            assert torch.equal(q.rsample((2,))[1], q.mean)
        vector = q.mean[1, :, 2, 3]
        assert (vector - codes).square().sum(1).argmin() == q.indices[1, 2, 3] or train


def test_vq_takes_the_nearest_code_and_lfq_the_signs() -> None:
    vectors = torch.randn(50, 6)
    posterior = VqPosterior([6], codebook_size=20).eval()
    found = posterior.quantize(vectors)
    assert torch.equal(found.indices, torch.cdist(vectors, posterior.codebook).argmin(1))
    assert torch.allclose(found.penalty, 0.25 * (vectors - found.codes).square().sum(1))
    assert torch.equal(LfqPosterior([6]).eval().quantize(vectors).codes, vectors.sign())


def test_fsq_rounds_to_each_of_its_levels() -> None:
    for levels in ([3, 4], [2, 5, 2]):
        posterior = FsqPosterior([len(levels)], levels=levels)
        codes = posterior.quantize(3 * torch.randn(5000, len(levels))).codes
        assert [len(column.unique()) for column in codes.mul(1e4).round().T] == levels
        assert len(posterior.codebook) == math.prod(levels)


@pytest.mark.parametrize("kind", [VqPosterior, LfqPosterior])
def test_gradients_pass_straight_through(kind: type[QuantizedPosterior]) -> None:
    vectors = torch.randn(7, 4, requires_grad=True)
    weights = torch.randn(7, 4)
    (kind([4]).train()(vectors).mean * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


@each
def test_the_codebook_changes_in_training_steps_only(quantized: vae.VAE) -> None:
    images, before = torch.rand(4, 1, 28, 28), buffers_of(quantized.posterior)
    with torch.no_grad():
        quantized.posterior(quantized.encoder(images))
    quantized.eval().encode(images)
    quantized.posterior(quantized.encoder(images))
    assert all(torch.equal(one, before[name]) for name, one in quantized.posterior.state_dict().items())
    quantized.train()(images)
    after = quantized.posterior.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert bool(changed) == isinstance(quantized.posterior, VqPosterior)


@each
def test_a_step_leaves_the_mode_of_all_modules(quantized: vae.VAE) -> None:
    quantized.train()(torch.rand(2, 1, 28, 28))
    assert all(module.training for module in quantized.modules())


@each
def test_in_mixed_precision_codes_are_computed_in_32_bits(quantized: vae.VAE) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        q, z, _ = quantized(torch.rand(4, 1, 28, 28))
    assert q.mean.dtype == z.dtype == torch.float32


def test_codes_that_nothing_is_near_to_are_replaced_by_vectors_of_the_batch() -> None:
    vectors = 5 + torch.rand(64, 3, requires_grad=True)
    for replace_below, moved in ((1.1, True), (0.0, False)):
        posterior = VqPosterior([3], codebook_size=16, replace_below=replace_below)
        posterior(vectors)
        assert bool((posterior.codebook > 1).all()) == moved


@each
def test_the_divergence_is_the_number_of_positions_times_ln_k(quantized: vae.VAE) -> None:
    quantized.eval()
    images = torch.rand(3, 1, 28, 28)
    q, z, x = quantized(images)
    kl = quantized.divergence(q, z)
    assert kl.is_exact
    assert torch.allclose(kl.nats, torch.full((3,), 49 * math.log(len(quantized.posterior.codebook))))
    assert torch.allclose(q.log_prob(z) - quantized.prior().log_prob(z), kl.nats)
    bounds = importance_weighted(quantized, images, [1, 4], torch.Generator())
    for k in (1, 4):  # there is one z, so all bounds are the ELBO
        assert torch.allclose(bounds[f"iwae_{k}"].float(), x.log_prob(images) - kl.nats, rtol=1e-4)


@each
def test_the_prior_draws_each_code_equally_often(quantized: vae.VAE) -> None:
    codes = quantized.posterior.codebook
    z = quantized.draw(400, torch.Generator().manual_seed(0))
    assert torch.equal(z, quantized.draw(400, torch.Generator().manual_seed(0)))
    found = torch.cdist(z.movedim(1, -1).reshape(-1, z.shape[1]), codes).argmin(1).bincount(minlength=len(codes))
    expected = found.sum() / len(codes)
    assert abs((found - expected).square().sum() / expected - len(codes)) < 5 * math.sqrt(2 * len(codes))


@pytest.mark.parametrize("objective", ["elbo", "mse_kl"])
@each
def test_the_penalty_is_a_term_of_its_own(quantized: vae.VAE, objective: str) -> None:
    words = ("likelihood.sigma=0.1",) if objective == "elbo" else ()
    chosen = config.build(settings(("name=x", f"objective={objective}", *words)).config.objective)
    terms = {name: one.item() for name, one in chosen(quantized.eval(), torch.rand(3, 1, 28, 28), 0.5).items()}
    assert terms.keys() == chosen.units_for(quantized.posterior).keys()
    assert ("commitment" in terms) == quantized.posterior.has_penalty
    beta = 1.0 if objective == "elbo" else 0.01
    wanted = terms["reconstruction"] + beta * (terms["kl"] + terms.get("commitment", 0.0))
    assert terms["total"] == pytest.approx(wanted, rel=1e-5)


def test_entropies_of_bits_are_those_of_the_codes() -> None:
    """With all 2³ codes written out: the softmax of the negative squared distances."""
    posterior, vectors = LfqPosterior([3], commitment=0.0, entropy=1.0, diversity=0.0), 0.3 * torch.randn(5, 3)
    shares = (-torch.cdist(vectors, posterior.codebook).square()).softmax(1)
    assert torch.allclose(posterior.quantize(vectors).penalty, torch.special.entr(shares).sum(1), atol=1e-5)
    diverse = LfqPosterior([1], commitment=0.0, entropy=2.0, diversity=1.5)
    mean = (4 * vectors[:, :1]).sigmoid().mean()
    batch = torch.distributions.Bernoulli(mean).entropy()
    own = torch.distributions.Bernoulli(logits=4 * vectors[:, 0]).entropy()
    assert torch.allclose(diverse.quantize(vectors[:, :1]).penalty, 2 * (own - 1.5 * batch), atol=1e-5)


def test_use_of_a_codebook_whose_indices_are_known() -> None:
    indices = torch.tensor([[0, 0], [1, 2]])
    found = use_of_codebook([Quantized(torch.zeros(2, 3, 2), indices, None, 8)])
    assert found["rate_bits"] == 6
    assert found["codebook_used"] == 3 / 8
    assert found["codebook_perplexity"] == pytest.approx(2**1.5)
    (vector,) = (use_of_codebook([Quantized(torch.zeros(4, 3), torch.arange(4), None, 4)]),)
    assert vector == {"rate_bits": 2, "codebook_used": 1, "codebook_perplexity": pytest.approx(4)}


@each
def test_quantised_models_are_the_same_in_onnx(quantized: vae.VAE, tmp_path: Path) -> None:
    assert max(export.export_halves(quantized.eval(), "onnx", tmp_path).values()) <= export.TOLERANCE


@pytest.mark.parametrize(("words", "problem"), [
    (["latent=vq", "prior=flow"], "prior: must be over the codes .* but is vae_lab.FlowPrior; take prior=codes, or"),
    (["latent=fsq", "posterior=diagonal"], "prior: vae_lab.CodesPrior is over .* is vae_lab.Diagonal.*latent=vq"),
    (["latent=lfq", "objective=iwae"], "objective: vae_lab.Iwae cannot train .*=elbo or objective=mse_kl"),
    (["latent=vq", "objective=rae"], "objective: vae_lab.Rae cannot train"),
    (["latent=fsq", "latent.shape=[3,7,7]"], ".levels: .* 3 channels .* take latent.shape=.4,7,7., or 3 levels"),
    (["latent=fsq", "posterior.levels=[8,1,5,5]"], "posterior.levels: must be a number of levels"),
    (["latent=fsq", "posterior.levels=[99,99,99,99]"], "a product of at most 262,144"),
    (["latent=lfq", "latent.shape=[30,7,7]"], "latent.shape: must have at most 18 channels .* latent.shape=.18,7,7."),
    (["latent=vq", "posterior.codebook_size=1"], "posterior.codebook_size: must be at least 2"),
], ids=str)  # fmt: skip
def test_quantisers_that_nothing_suits_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_fit(settings(("name=x", *words)).config)


def test_a_whole_vector_may_be_one_code() -> None:
    model = vae.build(settings(("name=x", "posterior=vq", "prior=codes", "latent.dim=6", *BLOCKS)).config).eval()
    q = model.encode(torch.rand(3, 1, 28, 28))
    assert (q.mean.shape, q.indices.shape) == ((3, 6), (3,))
    assert model.sample(2, seed=0).shape == (2, 1, 28, 28)
