"""Validation tells every problem, with key, rule, value and alternatives; a run's identity is what changes it."""

import re
from pathlib import Path
from random import Random

import pytest
from conftest import Compose
from hypothesis import given
from hypothesis import strategies as st

from vae_lab import config
from vae_lab.config import ConfigError, Problem, cell_name, identifying


def nested(lists: int) -> str:
    return lists * "{blocks:[" + "{conv:4}" + lists * "]}"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("latent.dim=0", "latent.dim", "at least 1, but is 0"),
        ("latent.dim=-3", "latent.dim", "at least 1, but is -3"),
        ("latent.dim=12345678", "latent.dim", "at most 1048576, but is 12345678"),
        ("latent.dim=abc", "latent.dim", "a whole number, but is 'abc'"),
        ("latent.dim='64'", "latent.dim", "a whole number, but is '64'"),
        ("latent.dim=2.5", "latent.dim", "a whole number, but is 2.5"),
        ("latent.dim=true", "latent.dim", "a whole number, but is True"),
        ("latent.dim=null", "latent.dim", "a whole number, but is None"),
        ("~latent", "latent", "is missing"),
        ("seed=-1", "seed", "at least 0, but is -1"),
        ("seed=4294967296", "seed", "at most 4294967295"),
        ("objective.beta=-0.1", "objective.beta", "at least 0, but is -0.1"),
        ("objective.beta=nan", "objective.beta", "a finite number, but is nan"),
        ("optimizer.lr=0", "optimizer.lr", "greater than 0"),
        ("optimizer.lr=inf", "optimizer.lr", "a finite number, but is inf"),
        ("trainer.max_epochs=0", "trainer.max_epochs", "at least 1, but is 0"),
        ("trainer.threads=0", "trainer.threads", "at least 1, but is 0"),
        (
            "trainer.devices=2",
            "trainer.devices",
            "must be 1, or a list of one GPU, but is 2; trainer=ddp trains a run in several processes",
        ),
        ("trainer.devices=[0,1]", "trainer.devices", "must be 1, or a list"),
        ("trainer.devices=auto", "trainer.devices", "must be a number of processes, 1 to 1023, or a list of GPUs"),
        ("trainer.devices=true", "trainer.devices", "must be a number of processes, 1 to 1023, or a list of GPUs"),
        ("trainer.devices=[0,0]", "trainer.devices", "must be a number of processes, 1 to 1023, or a list of GPUs"),
        ("trainer.precision=null", "trainer.precision", "must be 32-true, 64-true"),
        ("trainer.precision=bf16-true", "trainer.precision", "must be 32-true, 64-true"),
        ("+trainer.limit_test_batches=0", "trainer.limit_test_batches", "must be greater than 0, but is 0"),
        ("+trainer.limit_val_batches=0.0", "trainer.limit_val_batches", "data.num_val=0 does without validation"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run", "is set by vae_lab"),
        ("hydra.run.dir=.", "hydra.run.dir", "must make a folder that ends in <name>/<cell>/seed-<n>"),
        ("~encoder", "encoder", "is missing"),
        ("callbacks.pictures.images=0", "callbacks.pictures.images", "at least 1, but is 0"),
        ("+callbacks.pictures.image=3", "callbacks.pictures.image", "did you mean 'images'?"),
        ("+trainer.logger=false", "trainer.logger", "is set by vae_lab"),
        ("data.batch_size=-64", "data.batch_size", "at least 1, but is -64"),
        (
            "data.num_train=3001",
            "data.num_train",
            "at most the 4,000 images in the training files, but is 3,001 + 1,000",
        ),
        ("data.num_test=1001", "data.num_test", "at most the 1,000 images in the test files, but is 1,001"),
        ("data.subset=last", "data.subset", "'first', 'random' or 'stratified', but is 'last'"),
        ("data.image_shape=[28,28]", "data.image_shape", "a list of 3 or more"),
        ("name=../x", "name", "one folder name"),
        ("name=a/b", "name", "one folder name"),
        ("name=..", "name", "one folder name"),
        ("name=''", "name", "one folder name"),
        (f"name={101 * 'a'}", "name", "at most 100 characters"),
        (f"name='{100 * '𝐚'}'", "name", "at most 100 characters and 200 bytes"),
        ("encoder.activation=swish", "encoder.activation", "'gated' or 'none', but is 'swish'"),
        ("+encoder.activaton=relu", "encoder.activaton", "did you mean 'activation'?"),
        ("encoder.blocks=[]", "encoder.blocks", "a list of 1 or more"),
        ("encoder.blocks=[{dwon:8}]", "encoder.blocks[0]", "did you mean 'down'?"),
        ("encoder.blocks=[{down:8,up:8}]", "encoder.blocks[0]", "exactly one block"),
        ("encoder.blocks=[{1:8}]", "encoder.blocks[0]", "exactly one block, but is {1: 8}"),
        ("encoder.blocks=[{down:8},{down:-8}]", "encoder.blocks[1].down", "at least 1, but is -8"),
        ("encoder.blocks=[{conv:8,kernel:4}]", "encoder.blocks[0].kernel", "must be odd"),
        (
            "encoder.blocks=[{down:8,stride:4}]",
            "encoder.blocks[0].stride",
            "known: down, kernel, repeat, activation, normalization",
        ),
        ("encoder.blocks=[{conv:4,repeat:600},{conv:4,repeat:600}]", "encoder.blocks", "must be 1000 blocks or fewer"),
        (f"encoder.blocks=[{nested(20)}]", "encoder.blocks", "must be 20 lists in one another or fewer"),
        ("decoder.blocks=[7]", "decoder.blocks[0]", "exactly one block, but is 7"),
        ("encoder.blocks=[{_target_:relu}]", "encoder.blocks[0]._target_", "a dotted name"),
        ("+extra=1", "extra", "no such key (its value is 1); known: name, seed"),
        ("optimizer._partial_=false", "optimizer._partial_", "must be True, but is False"),
        ("data.root=${missing.key}", "data.root", "Interpolation key 'missing.key' not found"),
        ("latent.dim=???", "latent.dim", "is missing; give it: latent.dim=…"),
        ("trainer.max_epochs=ten", "trainer.max_epochs", "a whole number, but is 'ten'"),
        ("trainer.max_epochs=[1]", "trainer.max_epochs", "a whole number, but is [1]"),
        ("data.batch_size=large", "data.batch_size", "a whole number, but is 'large'"),
        ("optimizer.lr=fast", "optimizer.lr", "a number, but is 'fast'"),
        ("optimizer.lr=???", "optimizer.lr", "is missing; give it: optimizer.lr=…"),
        ("~optimizer.lr", "optimizer.lr", "is missing"),
    ],
)
def test_each_problem_names_key_rule_and_value(run_of: Compose, override: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of(override)
    assert [problem.key for problem in raised.value.problems] == [key]
    assert words in raised.value.problems[0].text


def test_all_problems_are_reported_at_once(run_of: Compose) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of("latent.dim=0", "seed=-1", "data.subset=last", "encoder.blocks=[{down:0},{up:0}]")
    keys = {problem.key for problem in raised.value.problems}
    assert keys == {"latent.dim", "seed", "data.subset", "encoder.blocks[0].down", "encoder.blocks[1].up"}


@pytest.mark.parametrize(
    "override",
    [
        "trainer.devices=[1]",
        "name=1.5",
        "~scheduler",
        "~callbacks",
        "~logger",
        "seed=0",
        "name=5",
        "data.num_val=0",
        "objective.beta=0",
        "objective.beta=1",
    ],
)
def test_values_at_the_edge_are_accepted(run_of: Compose, override: str) -> None:
    run_of(override)


def test_seed_zero_is_a_seed(run_of: Compose) -> None:
    run = run_of("seed=0", "name=x")
    assert run.config.seed == 0
    assert run.directory == Path.cwd() / "outputs/x/vanilla-vanilla/seed-0"


STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/total"}
COMPOSED = {
    "callbacks": {"pictures": {"_target_": "vae_lab.Pictures"}, "stop": STOP},
    "logger": {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}},
}


@pytest.mark.parametrize(
    ("overrides", "cell"),
    [
        ([], "vanilla-encdec"),
        (["encoder=vanilla", "decoder=encdec", "seed=3", "name=x", "data.root=/x"], "vanilla-encdec"),
        (["logger=csv", "callbacks.pictures.images=3", "+metrics=full"], "vanilla-encdec"),
        (["latent.dim=64"], "vanilla-encdec__latent.dim-64"),
        (["optimizer.lr=0.01", "latent.dim=64"], "vanilla-encdec__latent.dim-64__optimizer.lr-0.01"),
        (["data=fashion_mnist"], "vanilla-encdec__data-fashion_mnist"),
        (["+trainer.gradient_clip_val=1", "~scheduler"], "vanilla-encdec__scheduler-__trainer.gradient_clip_val-1"),
        (["encoder.blocks=[{down: 8}]"], "vanilla-encdec__encoder.blocks---down--8--"),
        (["+callbacks.stop.patience=3"], "vanilla-encdec__callbacks.stop.patience-3"),
        (["callbacks=mine", "logger=csv"], "vanilla-encdec__callbacks-mine"),
        (["~callbacks.progress"], "vanilla-encdec"),
    ],
)
def test_cell_is_named_after_what_was_overridden(overrides: list[str], cell: str) -> None:
    assert cell_name("vanilla", "encdec", identifying(overrides, COMPOSED)) == cell


def test_a_long_cell_name_is_cut_to_a_checksum() -> None:
    names = {cell_name("vanilla", "encdec", {"encoder.blocks": f"{'x' * 300}{end}"}) for end in "ab"}
    assert len(names) == 2
    assert all(len(name) < 100 and name.startswith("vanilla-encdec__") for name in names)
    assert not set("/=, ") & set("".join(names) + cell_name("a/b c", "d", {}))


KEYS = st.from_regex(r"[a-z_]{1,12}(\.[a-z_]{1,12}){0,2}", fullmatch=True)


@given(st.dictionaries(KEYS, st.text(max_size=40), max_size=6), st.randoms())
def test_a_cell_is_one_folder_name_whatever_is_overridden(overridden: dict[str, str], random: Random) -> None:
    overrides = [f"{key}={value}" for key, value in overridden.items()]
    cell = cell_name("vanilla", "encdec", identifying(overrides, {}))
    assert re.fullmatch(r"[\w.+-]+", cell)
    assert len(cell) <= 120
    random.shuffle(overrides)
    assert cell_name("vanilla", "encdec", identifying(overrides, {})) == cell


def test_checksum_changes_with_what_changes_a_result(run_of: Compose) -> None:
    default = run_of("name=x").config.sha256()
    for same in ("seed=4", "name=y", "logger=csv", "callbacks=quiet", "data.root=/elsewhere"):
        assert run_of(same).config.sha256() == default
    stop = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/total"
    for other in ("latent.dim=64", "encoder=encdec", "trainer.threads=7", "trainer.max_epochs=11", f"{stop}}}"):
        assert run_of(other).config.sha256() != default
    assert run_of(f"{stop},changes_results:false}}").config.sha256() == default


def test_a_stored_configuration_is_valid_again(run_of: Compose) -> None:
    settings = run_of("encoder=encdec", "encoder.blocks=[{down:8},{_target_:torch.nn.Dropout,p:0.1}]").config
    assert config.validate(settings.container()).sha256() == settings.sha256()


def test_new_arguments_of_blocks_leave_earlier_configurations_unchanged(run_of: Compose) -> None:
    stored = run_of().config.container()
    shared = {"activation": "leaky_relu", "normalization": "batch"}
    downs = [{"down": 16, "kernel": 3}, {"down": 32, "kernel": 3}]
    ups = [{"unflatten": 32}, {"up": 32, "kernel": 3}, {"up": 16, "kernel": 3}]
    assert stored["encoder"] == shared | {"_target_": "vae_lab.Encoder", "blocks": downs}
    assert stored["decoder"] == shared | {"_target_": "vae_lab.Decoder", "blocks": ups}
    assert "match" not in stored


@pytest.mark.parametrize(("images", "batch", "epochs", "steps"), [(3000, 64, 10, 470), (64, 64, 1, 1), (65, 64, 2, 4)])
def test_schedules_know_the_number_of_steps(run_of: Compose, images: int, batch: int, epochs: int, steps: int) -> None:
    run = run_of(f"data.num_train={images}", f"data.batch_size={batch}", f"trainer.max_epochs={epochs}")
    assert run.config.scheduler is not None
    assert run.config.scheduler.model_dump()["total_steps"] == steps


ACCUMULATION = "lightning.pytorch.callbacks.GradientAccumulationScheduler"


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("+trainer.limit_train_batches=3", 30),
        ("+trainer.limit_train_batches=0.5", 230),
        ("+trainer.accumulate_grad_batches=4", 120),
        ("+trainer.max_steps=100", 100),
        ("+trainer.max_steps=-1", 470),
        ("+trainer.overfit_batches=2", 20),
        (f"+callbacks.g={{_target_:{ACCUMULATION},scheduling:{{0:4,8:2}}}}", 8 * 12 + 2 * 24),
    ],
)
def test_schedules_know_what_shortens_a_training(run_of: Compose, override: str, steps: int) -> None:
    scheduler = run_of(override).config.scheduler
    assert scheduler is not None
    assert scheduler.model_dump()["total_steps"] == steps


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("optimizer._target_=torch.optim.Adamm", "optimizer._target_", "'torch.optim.Adamm'"),
        ("+optimizer.lrr=1", "optimizer.lrr", "did you mean 'lr'?"),
        ("callbacks.progress._target_=no_such_package.Bar", "callbacks.progress._target_", "No module named"),
        (
            "encoder.blocks=[{_target_:torch.nn}]",
            "encoder.blocks[0]._target_",
            "a class or a function, but 'torch.nn' is",
        ),
        ("encoder.blocks=[{_target_:torch.nn.Dropout,q:1}]", "encoder.blocks[0].q", "Dropout takes no such argument"),
    ],
)
def test_targets_must_exist_and_take_their_keys(run_of: Compose, override: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.check_targets(run_of(override).config)
    assert raised.value.problems[0].key == key
    assert words in raised.value.problems[0].text


def test_choices_put_the_closest_first() -> None:
    assert config.choices("vanila", ["encdec", "vanilla"]) == "did you mean 'vanilla'? known: encdec, vanilla"
    assert config.choices("x", ["encdec", "vanilla"]) == "known: encdec, vanilla"


def test_errors_of_hydra_are_explained_in_the_same_form(run_of: Compose) -> None:
    def explained(*overrides: str) -> Problem:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - Hydra raises many kinds
            run_of(*overrides)
        assert config.is_complaint(raised.value)
        (problem,) = config.explain(raised.value).problems
        return problem

    assert explained("latent=vectr") == (
        "latent",
        "there is no choice 'vectr'; did you mean 'vector'? known: fsq, lfq, map, vector, vq",
    )
    assert explained("latent.dims=3") == (
        "latent.dims",
        "no such key (latent.dims=3); did you mean 'dim'? known: _target_, dim",
    )
    assert explained("encoders=vanilla").text.startswith("no such key (encoders=vanilla); did you mean 'encoder'?")
    assert explained("latent.dim").text.startswith("'latent.dim' is not of the form key=value")
    assert explained("encoder._target_=mine.Encoder").text.endswith(
        "add it with a plus: +encoder._target_=mine.Encoder"
    )
    assert explained(f"encoder.blocks=[{nested(90)}]").text.startswith("lists are nested too deep")
    assert explained("encoder=null").text.startswith("Config group override must be")


def test_a_bug_is_not_reported_as_a_mistake_of_the_user() -> None:
    with pytest.raises(KeyError) as raised:
        _ = {}["x"]
    assert not config.is_complaint(raised.value)


def test_a_number_too_long_for_python_to_print_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"latent\.dim: is a number of more than 10,000 bits"):
        config.validate({"latent": {"dim": 16**6000}})


EXPERIMENT = ("experiment=published/exemplar_vae", "prior=standard")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ((), [0.019, 0.0149, 0.4128, 36.06]),
        (("trainer.threads=1", "seed=3", "name=x", "metrics=full"), [0.019, 0.0149, 0.4128, 36.06]),
        (("encoder=mlp",), []),
        (("latent.dim=8",), []),
        (("~scheduler",), []),
        (("experiment=priors",), []),
        (EXPERIMENT, [-228.7]),
        ((*EXPERIMENT, "trainer=gpu", "data.root=/x", "encoder=gated"), [-228.7]),
        (("experiment=published/exemplar_vae", "prior=vamp_500"), [-227.35]),
        (("experiment=published/exemplar_vae", "prior=flow"), []),
        (("experiment=published/exemplar_hvae", "prior=hierarchical"), [-227.37]),
        (("experiment=published/exemplar_hvae", "prior=hierarchical_vamp"), [-226.72]),
        (("experiment=published/exemplar_hvae", "prior=hierarchical", "decoder=mlp"), []),
        ((*EXPERIMENT, "latent.dim=20"), []),
        ((*EXPERIMENT, "decoder=mlp"), []),
        ((*EXPERIMENT, "trainer=debug"), []),
        ((*EXPERIMENT, "~callbacks.early_stopping"), []),
    ],
)
def test_published_figures_are_about_one_model(run_of: Compose, words: tuple[str, ...], values: list[float]) -> None:
    published = run_of(*words).config.published
    assert [one.value for one in (published.figures if published else [])] == values


def test_sigma_gives_beta_and_the_likelihood_its_sigma(run_of: Compose) -> None:
    for size in (16, 256):
        settings = run_of("name=x", "objective.sigma=0.1", f"latent.dim={size}").config
        assert settings.objective.beta == pytest.approx(2 * 0.01 * size / 784)
        assert settings.likelihood.sigma == 0.1
    assert config.validate(settings.container()) == settings
    usual = run_of("name=x").config
    assert usual.sha256() == run_of("name=x", "objective.sigma=null").config.sha256() != settings.sha256()


def test_what_a_seed_changes_is_part_of_a_run_unless_it_is_the_usual(run_of: Compose) -> None:
    usual = run_of("name=x").config
    assert usual.vary == ("init", "order", "noise")
    assert "vary" not in usual.container()
    same = run_of("name=x", "vary=[noise,init,order]").config
    assert same.sha256() == usual.sha256()
    other = run_of("name=x", "vary=order", "seed=5").config
    assert other.sha256() != usual.sha256()
    assert [other.seed_of(source) for source in ("init", "order", "noise", "subset")] == [0, 5, 0, 0]
    assert config.validate(other.container()) == other


def test_a_seed_that_chooses_the_images_is_the_seed_of_their_draw(run_of: Compose) -> None:
    words = ("name=x", "vary=subset", "data.subset=random")
    one, other = (run_of(*words, f"seed={seed}").config for seed in (3, 4))
    assert (one.data.subset_seed, other.data.subset_seed) == (3, 4)
    assert one.sha256() == other.sha256()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("vary=weights",), "vary[0]: must be 'init', 'order', 'noise' or 'subset', but is 'weights'"),
        (("vary=[]",), "vary: must be a list of 1 or more"),
        (("vary=3",), "vary: must be a list"),
        (("vary=subset",), "vary: has subset, but data.subset is first; take data.subset=random or stratified"),
        (("objective.sigma=0",), "objective.sigma: must be greater than 0, but is 0"),
        (
            ("objective.sigma=0.1", "objective.beta=0.5"),
            "objective.beta: follows from objective.sigma, which is given too",
        ),
        (("vary=subset", "data.subset=random", "data.subset_seed=7"), "data.subset_seed: is the seed of the run"),
        (("objective.sigma=0.1", "likelihood.sigma=0.2"), "likelihood.sigma: must be from_beta under objective=mse_kl"),
    ],
)
def test_what_a_seed_changes_and_sigma_must_make_sense(run_of: Compose, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of("name=x", *overrides)
    assert words in str(raised.value)
