"""Each kind of extension is one Python file and one YAML file, and does everything that ours do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Compose
from kills import check_resuming
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae_lab
from vae_lab import results
from vae_lab.config import PACKAGE, ConfigError, config_folder
from vae_lab.model.match import check_fit
from vae_lab.report import prepare, write
from vae_lab.trained import export, sheets
from vae_lab.training import runner

SMALL = (
    "data.num_train=60", "data.num_val=20", "data.num_test=20", "data.batch_size=20", "trainer.max_epochs=3",
    "trainer.threads=1", "trainer.precision=32-true", "encoder.blocks=[{down:4}]", "latent.dim=4",
    "decoder.blocks=[{unflatten:4},{up:4},{up:4}]", "callbacks.pages.points=5", "callbacks.pictures.images=4",
)  # fmt: skip


GUIDE = (Path(__file__).parents[1] / "docs" / "extensions.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))


class Extension(NamedTuple):
    """An example of the guide: its Python and YAML files, and the words that choose it."""

    code: str
    yaml: str
    words: tuple[str, ...]
    figures: tuple[str, ...] = ()
    """What `result.json` has under `test` because of it."""
    is_part: bool = False
    """Whether it is a part of the model, which `load` must be allowed."""


EXTENSIONS = {
    "objective": Extension(
        "spread", "objective/spread.yaml", ("objective=spread", "likelihood.sigma=0.3"), figures=("spread",)
    ),
    "prior": Extension("scaled", "prior/scaled.yaml", ("prior=scaled",), is_part=True),
    "posterior": Extension("laplace", "posterior/laplace.yaml", ("posterior=laplace",), is_part=True),
    "likelihood": Extension("sharp", "likelihood/sharp.yaml", ("likelihood=sharp", "objective=elbo"), is_part=True),
    "block": Extension("squash", "encoder/squashed.yaml", ("encoder=squashed",), is_part=True),
    "metric": Extension("brightness", "metrics/brightness.yaml", ("metrics=brightness",), figures=("brightness",)),
    "callback": Extension("shrink", "callbacks/shrink.yaml", ("callbacks=shrink",)),
}


@pytest.fixture
def extended(run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs that are chosen by a user's own files."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(kind: str, *more: str) -> Any:
        extension = EXTENSIONS[kind]
        monkeypatch.delitem(sys.modules, extension.code, raising=False)
        for file in (f"{extension.code}.py", f"my_conf/{extension.yaml}"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(FILES[file])
        small = [word for word in SMALL if not any(word.startswith(f"{key.split('=')[0]}.") for key in extension.words)]
        return run_of(f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]", *extension.words, *small, *more)

    return make


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_an_extension_does_everything_that_ours_do(extended: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    extension = EXTENSIONS[kind]
    whole, run = extended(kind, "name=whole"), extended(kind, "name=killed")
    check_fit(run.config)
    runner.check(run.config)
    _, result = check_resuming(whole, run)
    # Its terms and figures are in every file.
    test = result.test.model_dump()
    assert all(isinstance(test[name], float) for name in ("total", *extension.figures))
    assert result.nats == "real"
    assert test["elbo"] is not None
    assert result.divergence == ("estimated" if kind in ("prior", "posterior") else "exact")
    history = results.read_history(run.directory)
    assert len(history["val"]["total"]) == 3
    assert set(history["val"]) - {"epoch", "seconds"} == set(result.terms)
    events = EventAccumulator(str(run.directory)).Reload().Tags()["scalars"]
    assert {f"val/{term}" for term in result.terms} | {f"test/{name}" for name in extension.figures} <= {*events}
    # Load it, where it is allowed; draw from it; export it.
    allow = [extension.code] if extension.is_part else []
    if allow:
        with pytest.raises(vae_lab.LoadError, match="unless you allow it"):
            vae_lab.load(run.directory)
    model = vae_lab.load(run.directory, allow=allow)
    assert model.sample(3, seed=0).shape == (3, 1, 28, 28)
    images = torch.rand(2, 1, 28, 28)
    assert model.reconstruct(images).shape == images.shape
    sheets.generate(run.directory, sheets.Wanted("samples", rows=1, columns=2), tmp_path / "s.png", allow=allow)
    exported = export.export(run.directory, ["torch_export", "safetensors"], tmp_path / "export", allow=allow)
    assert (exported.folder / "encoder.pt2").exists()
    # It is in the report.
    prepared = prepare([run.directory.parents[1]])
    assert not prepared.study.holes
    page = (write(prepared, tmp_path / "report") / "report.md").read_text(encoding="utf-8")
    for name in extension.figures:
        assert prepared.study.figure(f"test.{name}").label in page
    # It makes a run of its own.
    assert run.cell != "vanilla-vanilla" or kind == "metric"


def test_a_metric_is_computed_for_a_finished_run_that_lacks_it(extended: Callable[..., Any], run_of: Compose) -> None:
    from vae_lab.evaluation.runs import complete
    from vae_lab.training import plan

    plain = run_of(*SMALL, "name=plain")
    assert runner.run(plain).finished
    asked = extended("metric", "name=plain")
    assert asked.directory == plain.directory
    earlier = plan.finished(asked)
    assert earlier is not None
    assert not plan.measured(asked, earlier)
    added = complete(asked, earlier)
    assert added.test.model_dump()["brightness"] > 0
    assert plan.measured(asked, added)
    assert added.test.total == earlier.test.total


# --- Inside the project: one code file, one YAML file ------------------------------------------------------

HOMES = {
    "objective": "objectives/spread.py", "prior": "model/priors/scaled.py", "posterior": "model/posteriors/laplace.py",
    "likelihood": "model/likelihoods/laplace.py", "callback": "training/callbacks/shrink.py",
}  # fmt: skip
WIDEN = '''"""`widen: 16`: a convolution without more."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Block, Place, Shape, Size, word


@word("widen")
class Widen(Block):
    """A convolution."""

    widen: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels."""
        return (self.widen, *shape[1:])

    def build(self, place: Place) -> Any:
        """The convolution."""
        from torch import nn

        return nn.Conv2d(place.channels, self.widen, 3, padding=1)
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package and its configuration."""
    shutil.copytree(PACKAGE, tmp_path / "vae_lab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(config_folder(), tmp_path / "conf")
    return tmp_path


def train(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = "from vae_lab.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "train", *words], cwd=project, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(project)},
    )  # fmt: skip


@pytest.mark.slow
def test_an_extension_of_the_project_is_one_code_file_and_one_yaml_file(project: Path) -> None:
    words = [word for word in SMALL if not word.startswith(("encoder", "trainer.max_epochs"))]
    for kind, home in HOMES.items():
        extension = EXTENSIONS[kind]
        code = FILES[f"{extension.code}.py"].replace("(self, factor)", "(self, *, factor: Positive)")
        code = code.replace("*, bonus=1.0", "*, bonus: NonNegative = 1.0").replace("*, scale)", "*, scale: Positive)")
        code = code.replace("*, scale=0.1", "*, scale: Positive = 0.1")
        (project / "vae_lab" / home).write_text(f"from vae_lab.config.base import NonNegative, Positive\n{code}")
        yaml = FILES[f"my_conf/{extension.yaml}"].replace(f"_target_: {extension.code}.", "_target_: vae_lab.")
        (project / "conf" / extension.yaml).write_text(yaml)
        words += (word for word in extension.words if word != "objective=elbo")
    (project / "vae_lab/model/blocks/widen.py").write_text(WIDEN)
    (project / "conf/encoder/widened.yaml").write_text("blocks:\n  - down: 4\n  - widen: 6\n")
    words = [word for word in words if not word.startswith(("callbacks.", "likelihood."))]
    done = train(project, *words, "encoder=widened", "trainer.max_epochs=1", "name=x")
    assert done.returncode == 0, done.stderr
    (found,) = project.glob("outputs/x/*/seed-0/result.json")
    result = json.loads(found.read_text())
    assert result["terms"]["spread"] == "variance"
    assert "spread" in result["test"]
    settings = (found.parent / "config.yaml").read_text()
    for name in ("Spread", "Scaled", "LaplacePosterior", "LaplaceLikelihood", "Shrink"):
        assert f"_target_: vae_lab.{name}\n" in settings
    # A value out of range stops the command before torch is imported.
    wrong = train(project, "prior=scaled", "prior.scale=-1", "encoder=widened", "encoder.blocks=[{widen:0}]")
    assert wrong.returncode == 1
    assert "prior.scale: must be greater than 0, but is -1" in wrong.stderr
    assert "encoder.blocks[0].widen: must be at least 1, but is 0" in wrong.stderr


def test_two_extensions_of_one_name_are_refused(project: Path) -> None:
    for name in ("one", "other"):
        (project / "vae_lab/model/priors" / f"{name}.py").write_text("class Twice(Prior):\n    pass\n")
    done = train(project, "trainer.max_epochs=1")
    assert done.returncode == 1
    assert (
        "vae_lab.Twice is defined in model/priors/one.py and in model/priors/other.py: rename one of the two"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


# --- What is wrong with one --------------------------------------------------------------------------------

BAD = {
    "no unit": (
        'class Bad(Objective):\n    units = {"total": "nats", "reconstruction": "nats", "kl": "nats"}\n'
        "    is_likelihood_trained = True\n    def forward(self, vae, images, progress):\n"
        "        t = vae(images).z.mean()\n"
        '        return {"total": t, "reconstruction": t, "kl": t, "more": t}\n',
        "objective: bad_objective.Bad returns the term 'more' without a unit: add it to its `units`",
    ),
    "no units": (
        "class Bad(Objective):\n    def forward(self, vae, images, progress):\n        return {}\n",
        "objective: bad_objective.Bad does not declare `units`: the unit of each term",
    ),
    "does not say what it measures": (
        'class Bad(Objective):\n    units = {"total": "nats"}\n    def forward(self, vae, images, progress):\n'
        "        return {}\n",
        "objective: bad_objective.Bad does not declare `is_likelihood_trained`",
    ),
    "a function": (
        "def Bad():\n    return print\n",
        "objective: must be a vae_lab.Objective, but bad_objective.Bad makes a builtin_function_or_method: subclass it",
    ),
    "no kl": (
        'class Bad(Objective):\n    units = {"total": "nats"}\n    is_likelihood_trained = True\n'
        "    def forward(self, vae, images, progress):\n"
        '        return {"total": vae(images).z.mean()}\n',
        "objective: must return total, reconstruction, kl, but bad_objective.Bad returns no reconstruction",
    ),
    "the name of another figure": (
        'class Bad(Objective):\n    units = dict.fromkeys(("total", "reconstruction", "kl", "mse"), "nats")\n'
        "    is_likelihood_trained = True\n    def forward(self, vae, images, progress):\n"
        "        return dict.fromkeys(self.units, vae(images).z.mean())\n",
        "objective: bad_objective.Bad returns the term 'mse', which is the name of another figure",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_objective_that_does_not_say_what_it_is_is_refused(
    run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    code, words = BAD[kind]
    (tmp_path / "bad_objective.py").write_text(f"from vae_lab import Objective\n\n\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_objective", raising=False)
    with pytest.raises(ConfigError) as raised:
        runner.check(run_of("objective._target_=bad_objective.Bad", "~objective.beta").config)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("pass", "likelihood: my_likelihood.Mine must say which images it is for: data is None"),
        ('data = "binary"', "likelihood: my_likelihood.Mine is for binary images, but data.binarize is none"),
    ],
)
def test_a_likelihood_says_which_images_it_is_for(
    run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, sentence: str
) -> None:
    (tmp_path / "my_likelihood.py").write_text(
        "from torch import ones_like\nfrom torch.distributions import Independent, Normal\n\n"
        "from vae_lab import Likelihood\n\n\n"
        f"class Mine(Likelihood):\n    {body}\n\n    def forward(self, output):\n"
        "        return Independent(Normal(output, ones_like(output), validate_args=False), 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_likelihood", raising=False)
    words = ("objective=elbo", "~likelihood.sigma", "~likelihood.link", "likelihood._target_=my_likelihood.Mine")
    with pytest.raises(ConfigError) as raised:
        runner.check(run_of(*words).config)
    assert str(raised.value).startswith(sentence)


def test_an_objective_without_a_likelihood_is_not_measured_in_nats(
    run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: an objective of a user's own was measured as a Gaussian with σ² = 16, and compared with others."""
    (tmp_path / "l1_objective.py").write_text(
        "from vae_lab import Objective\n\n\nclass L1(Objective):\n"
        '    units = dict.fromkeys(("total", "reconstruction", "kl"), "grey levels")\n'
        "    is_likelihood_trained = False\n\n    def forward(self, vae, images, progress):\n"
        "        q, z, x = vae(images)\n        loss = (x.mean - images).abs().mean()\n"
        '        return {"total": loss, "reconstruction": loss, "kl": vae.divergence(q, z).nats.mean()}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = run_of(*SMALL, "objective._target_=l1_objective.L1", "~objective.beta", "metrics.iwae=[10]", "name=both")
    result = runner.run(run)
    assert result.finished, result.error
    assert result.nats is None
    assert result.test.model_dump()["elbo"] is None
    assert result.test.model_dump()["iwae_10"] is None
    other = runner.run(run_of(*SMALL, "name=both"))
    assert other.finished
    study = prepare([run.directory.parents[1]]).study
    assert not any(study.comparable(f"test.{name}") for name in ("total", "reconstruction", "kl"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["likelihood=bernoulli", "objective=elbo"],
            "for binary images, but data.binarize is none; take data.binarize=",
        ),
        (
            ["likelihood=bernoulli", "data.binarize=static"],
            "likelihood: must be vae_lab.GaussianLikelihood for the objective",
        ),
        (
            ["posterior=point", "objective=elbo"],
            "posterior: vae_lab.PointPosterior has no density, which",
        ),
        (["posterior=point"], "which the objective vae_lab.MseKl needs; take posterior=diagonal"),
        (["likelihood.sigma=0.1"], "likelihood.sigma: must be from_beta under objective=mse_kl"),
        (["likelihood.sigma=from_beta", "objective=elbo"], "is from_beta, which is for objective=mse_kl"),
        (["likelihood.sigma=-1", "objective=elbo"], "likelihood.sigma"),
        (
            ["prior._target_=vae_lab.Standart"],
            "prior._target_: this version of vae_lab has no prior vae_lab.Standart; did you",
        ),
        (["objective.beta=-1"], "objective.beta: must be at least 0, but is -1"),
        (["callbacks.monitor.every_steps=0"], "callbacks.monitor.every_steps: must be at least 1, but is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_fit_together_is_said_in_one_sentence(run_of: Compose, words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of(*words)
    assert sentence in str(raised.value)
    assert len(raised.value.problems) == 1
