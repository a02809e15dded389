"""Codes that are maps: distributions over them, networks that meet them, and everything that is computed of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from kills import check_resuming
from runs import settings
from torch import nn

import vae_lab
from vae_lab import config
from vae_lab.config import Config, ConfigError
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.distributions import divergence
from vae_lab.model.interfaces import Posterior
from vae_lab.model.match import check_fit
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


@pytest.mark.parametrize("latent", ["map"])
def test_a_run_with_maps_does_everything(run_of: Compose, tmp_path: Path, latent: str) -> None:
    words = (f"latent={latent}", *SMALL)
    _, result = check_resuming(run_of(*words, "name=whole"), run := run_of(*words, "name=killed"))
    assert not [text for text in result.warnings if "not computed" in text or "could not" in text]
    test = result.test.model_dump()
    assert all(isinstance(test[name], float) for name in ("elbo", "iwae_2", "fid_samples_mixture"))
    model = vae_lab.load(run.directory)
    assert len(test["kl_per_dimension"]) == model.latent_dim
    images = torch.rand(2, 1, 28, 28)
    assert model.encode(images).mean.shape == (2, *model.latent_shape)
    assert model.interpolate(*images, 3).shape == (3, 1, 28, 28)
    walk = model.traverse(images[0], [0, model.latent_dim - 1], steps=2)
    assert walk.shape == (2, 2, 1, 28, 28)
    z = model.encode(images[:1]).mean
    z.flatten()[-1] = -3.0
    assert torch.allclose(walk[1, 0], model.decode(z)[0], atol=1e-6)
    for kind in ("interpolation", "traversal", "manifold"):
        sheets.generate(run.directory, sheets.Wanted(kind, rows=2, columns=2), tmp_path / f"{kind}.png")
    exported = export.export(run.directory, ["torch_export"], tmp_path / "export")
    shape = ", ".join(map(str, model.latent_shape))
    assert f"torch.randn(16, {shape})" in (exported.folder / "README.md").read_text()
