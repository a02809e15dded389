"""Every shipped YAML composes, builds and trains."""

from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import Compose, shipped, shipped_choices
from hydra import compose, initialize_config_dir
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vae_lab import config
from vae_lab.config import config_folder, names
from vae_lab.model import vae
from vae_lab.sweep import checks
from vae_lab.training import trial
from vae_lab.training.module import LitVAE

FILES = [
    path for file in shipped(config_folder()) if (path := file.relative_to(config_folder())).match("*/*.yaml")
    and len(path.parts) == 2
]  # fmt: skip
SHAPES = [[1, 28, 28], [3, 32, 32], [1, 64, 64], [3, 48, 40]]


def test_the_groups_are_those_of_the_root() -> None:
    assert {path.parent.name for path in FILES} == {
        "data", "encoder", "latent", "posterior", "prior", "decoder", "likelihood", "match", "objective", "optimizer",
        "scheduler", "trainer", "logger", "callbacks", "metrics", "published", "experiment",
    }  # fmt: skip


NEEDED = {
    "data/image_folder": ["data.root=images"],
    "posterior/point": ["objective=rae"],
    "objective/rae": ["posterior=point"],
    "posterior/vq": ["prior=codes"],
    "posterior/fsq": ["prior=codes", "latent.dim=4"],
    "posterior/lfq": ["prior=codes", "latent.dim=4"],
    "prior/codes": ["posterior=vq"],
    "likelihood/continuous_bernoulli": ["objective=elbo"],
    "likelihood/gaussian_optimal": ["objective=elbo"],
    "likelihood/gaussian_per_pixel": ["objective=elbo"],
    "likelihood/logistic": ["objective=elbo"],
    "prior/hierarchical_vamp": ["posterior=hierarchical"],
    "likelihood/bernoulli": ["data.binarize=dynamic", "objective=elbo"],
}
"""What a choice asks of other groups."""


def words_of(group: str, choice: str) -> list[str]:
    return [f"{group}={choice}", *NEEDED.get(f"{group}/{choice}", [])]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_is_valid_and_its_targets_exist(run_of: Compose, path: Path) -> None:
    config.check_targets(run_of(*words_of(path.parent.name, path.stem)).config)


PARTS = [
    (group, choice)
    for group in ("latent", "posterior", "prior", "likelihood", "objective")
    for choice in shipped_choices(group)
]


@pytest.mark.parametrize(("group", "choice"), PARTS, ids=str)
def test_every_part_of_a_model_learns(run_of: Compose, group: str, choice: str) -> None:
    small = () if group == "latent" else ("latent.dim=4", "encoder=mlp", "decoder=mlp")
    settings = run_of(*words_of(group, choice), *small).config
    model = vae.build(settings)
    losses = config.build(settings.objective)(model, torch.rand(4, 1, 28, 28).round(), 0.0)
    losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_every_class_of_a_family_has_a_file() -> None:
    for family in ("latent", "posterior", "prior", "likelihood", "objective"):
        named = {path.read_text() for path in (config_folder() / family).glob("*.yaml")}
        for name in (name for name, file in names.files(family).items() if file in shipped(config.PACKAGE)):
            assert any(f"_target_: vae_lab.{name}\n" in text for text in named), f"{family}: {name}"


def half_of(side: str, settings: config.Config) -> nn.Module:
    return vae.build_half(side, settings, vae.build_distributions(settings))


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_every_encoder_fits_every_decoder(run_of: Compose, shape: list[int]) -> None:
    """On the meta device, and allocates nothing."""
    with torch.device("meta"):
        halves: dict[str, list[nn.Module]] = {}
        for side in ("encoder", "decoder"):
            every = [run_of(f"{side}={name}", f"data.image_shape={shape}").config for name in shipped_choices(side)]
            halves[side] = [half_of(side, settings) for settings in every]
        posterior, prior, likelihood = vae.build_distributions(run_of(f"data.image_shape={shape}").config)
        images = torch.empty(2, *shape)
        for encoder, decoder in product(halves["encoder"], halves["decoder"]):
            output = vae.VAE(encoder, posterior, prior, decoder, likelihood)(images)
            assert output.likelihood.mean.shape == images.shape
            assert output.posterior.mean.shape == output.z.shape == (2, *posterior.latent_shape)


VARIANTS = [(side, name) for side in ("encoder", "decoder") for name in shipped_choices(side)]


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
@pytest.mark.parametrize(("side", "variant"), VARIANTS)
def test_every_variant_trains_against_vanilla(run_of: Compose, side: str, variant: str, shape: list[int]) -> None:
    settings = run_of(f"{side}={variant}", f"data.image_shape={shape}", "latent.dim=16").config
    model = vae.build(settings)
    images = torch.rand(4, *shape)
    reconstruction = model(images).likelihood.mean
    assert reconstruction.shape == images.shape
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 1
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = config.build(settings.optimizer)(model.parameters())
    config.build(settings.objective)(model, images, 0.0)["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    optimizer.step()
    for old, (name, new) in zip(before, model.named_parameters(), strict=True):
        assert not torch.equal(old, new), name
        assert torch.isfinite(new).all(), name


# As published, each written as torch modules would have it: weights and biases of convolutions and dense layers. A bias
# that a batch normalisation follows is not among them: the norm has one.
PUBLISHED = {
    ("encoder", "mlp_512"): 784 * 512 + 512 + 512 * 32 + 32,
    ("decoder", "mlp_512"): 16 * 512 + 512 + 512 * 784 + 784,
    ("encoder", "conv_1024"): 16 * (128 + 128 * 256 + 256 * 512 + 512 * 1024) + 2 * 1920 + 1024 * 32 + 32,
    ("decoder", "conv_1024"): 17 * 16384 + 9 * (1024 * 512 + 512 * 256 + 256) + 2 * 768 + 1,
    ("encoder", "resnet_128"): 16 * 64 + 64 + 16 * 64 * 128 + 128 + 9 * 128 * 128 + 128
    + 2 * (9 * 128 * 32 + 32 + 32 * 128 + 128) + 2048 * 32 + 32,
    ("decoder", "resnet_128"): 17 * 2048 + 9 * 128 * 128 + 128 + 2 * (9 * 128 * 32 + 32 + 32 * 128 + 128)
    + 9 * 128 * 64 + 64 + 9 * 64 + 1,
}  # fmt: skip


@pytest.mark.parametrize(("half", "parameters"), PUBLISHED.items(), ids=str)
def test_published_networks_have_the_size_they_were_published_with(
    run_of: Compose, half: tuple[str, str], parameters: int
) -> None:
    side, name = half
    settings = run_of(f"{side}={name}", "latent.dim=16").config
    with torch.device("meta"):
        built = half_of(side, settings)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_the_published_convolutional_network_has_maps_of_the_published_sizes(run_of: Compose) -> None:
    model = vae.build(run_of("encoder=conv_1024", "decoder=conv_1024", "latent.dim=16").config).eval()
    sides = []
    for block in (*model.encoder.blocks, *model.decoder.blocks):
        block.register_forward_hook(lambda *call: sides.append(call[-1].shape[-1]))
    model(torch.rand(1, 1, 28, 28))
    assert sides == [14, 7, 3, 1, 4, 7, 14]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_model_is_made_at_once(run_of: Compose, shape: list[int]) -> None:
    """Its weights are drawn once, and nothing else of their size is computed on the way."""
    settings = run_of("encoder=resnet_128", "decoder=conv_1024", f"data.image_shape={shape}").config
    with Written() as written:
        model = vae.build(settings)
    assert written.numbers < 3.5 * sum(parameter.numel() for parameter in model.parameters())


class Written(TorchDispatchMode):
    """Counts the numbers that operations write, those on the meta device left out."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.numbers += result.numel()
        return result


STUDIES = {
    "likelihoods": ("likelihood", "gaussian gaussian_optimal gaussian_per_pixel continuous_bernoulli logistic"),
    "annealing": ("objective", "elbo elbo_linear elbo_cyclical elbo_free_bits elbo_target_kl"),
    "priors": ("prior", "standard mixture vamp flow"),
    "posteriors": ("posterior", "diagonal full flow"),
    "latent_sizes": ("latent.dim", "2 8 32 128"),
    "rate_distortion": ("objective.beta", "0.25 1 4 16"),
    "quantizers": ("latent", "map vq fsq lfq"),
    "objectives": ("objective", "elbo iwae beta_tc dip mmd"),
}
"""Study → what it sweeps beside seeds and networks, and its levels."""


@pytest.mark.parametrize("name", [name for name in shipped_choices("experiment") if name != "search"])
def test_every_study_asks_a_question_and_trains_the_cells_that_answer_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (config_folder() / f"experiment/{name}.yaml").read_text()
    assert "?" in "".join(line for line in text.splitlines() if line.startswith("#")) or name == "seed_grid"
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        words = [f"experiment={name}", "++hydra.sweeper.params.seed=0"]
        runs = checks.validated(checks.expand(compose("train", words, return_hydra_config=True)))
    assert len({run.cell for run in runs}) == len({run.config.sha256() for run in runs}) == len(runs)
    if name in STUDIES:
        key, levels = STUDIES[name]
        assert "seed: 0,1,2\n" in text
        assert {word.partition("=")[2] for run in runs for word in run.overrides if word.startswith(f"{key}=")} == {
            *levels.split()
        }
    for run in trial.chosen(runs):
        total = config.build(run.config.objective)(vae.build(run.config), torch.rand(2, 1, 28, 28), 0.5)["total"]
        total.backward()
        assert total.isfinite()


@pytest.mark.parametrize("scheduler", shipped_choices("scheduler"))
@pytest.mark.parametrize("optimizer", shipped_choices("optimizer"))
def test_every_optimiser_steps_under_every_scheduler(run_of: Compose, optimizer: str, scheduler: str) -> None:
    settings = run_of(
        f"optimizer={optimizer}", f"scheduler={scheduler}", "data.num_train=8", "data.batch_size=4", "latent.dim=4"
    ).config
    assert settings.scheduler is not None
    module = LitVAE(
        vae.build(settings),
        config.build(settings.objective),
        config.build(settings.optimizer),
        config.build(settings.scheduler),
    )
    both = module.configure_optimizers()
    before = [parameter.clone() for parameter in module.parameters()]
    rates = []
    images = torch.rand(4, 1, 28, 28)
    for _ in range(settings.scheduler.model_dump().get("total_steps", 20)):
        both["optimizer"].zero_grad()
        module.objective(module.vae, images, 0.0)["total"].backward()
        both["optimizer"].step()
        rates.append(both["lr_scheduler"]["scheduler"].get_last_lr()[0])
        both["lr_scheduler"]["scheduler"].step()
    assert max(rates) == pytest.approx(settings.optimizer.lr)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    if scheduler != "constant":
        assert rates[-1] < 0.05 * settings.optimizer.lr
