"""Exported models are the models; the folder they are in can be uploaded as it is."""

import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Compose, shipped_choices
from test_sheets import run as run_folder
from torch import Tensor, nn

import vae_lab
from vae_lab import cli, results
from vae_lab.cli import export as command
from vae_lab.model import vae
from vae_lab.trained import card, export
from vae_lab.trained.export import ExportError

HALVES = {side: shipped_choices(side) for side in ("encoder", "decoder")}
PAIRS = [(name if name in HALVES["encoder"] else "vanilla", name) for name in HALVES["decoder"]]
PAIRS += [(name, "vanilla") for name in HALVES["encoder"] if name not in HALVES["decoder"]]

run = run_folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "small" / "cell" / "seed-0"))


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=str)
def test_every_shipped_half_is_the_same_in_onnx(run_of: Compose, tmp_path: Path, encoder: str, decoder: str) -> None:
    torch.manual_seed(0)
    model = vae.build(run_of("name=x", f"encoder={encoder}", f"decoder={decoder}", "latent.dim=8").config).eval()
    differences = export.export_halves(model, "onnx", tmp_path)
    assert {*differences} == {path.name for path in tmp_path.glob("*.onnx")} == {"encoder.onnx", "decoder.onnx"}
    assert max(differences.values()) <= export.TOLERANCE


def test_a_run_becomes_a_folder_for_a_model_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["export", str(folder), "--format", "onnx", "torch_export", "safetensors", "--license", "mit"])
    assert "differs from the model by" in capsys.readouterr().out
    place = folder / "export"
    files = {path.name for path in place.iterdir()}
    assert files == {*card.FILES, *card.FIGURES.values(), "README.md", "config.yaml", "result.json"}
    model, images = vae_lab.load(folder), torch.rand(3, 1, 28, 28)
    assert torch.equal(vae_lab.load(place).reconstruct(images), model.reconstruct(images))

    text = (place / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "vae_lab"
    figures = front["model-index"][0]["results"][0]["metrics"]
    test = json.loads((folder / "result.json").read_text())["test"]
    assert {one["type"]: one["value"] for one in figures} == {name: test[name] for name in front["metrics"]}
    assert {"total", "psnr", "fid_samples"} <= {*front["metrics"]}
    assert all(name in text for name in files - {"README.md"})
    for name in ("README.md", "config.yaml", "result.json"):  # nothing of the machine that it was made on
        content = (place / name).read_text()
        assert str(folder.parents[2]) not in content
        assert socket.gethostname() not in content
        assert not re.search(r"[\s'\"=](/|~/)\w", content)

    monkeypatch.chdir(place)
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        names: dict[str, np.ndarray | Tensor] = {}
        exec(snippet, names)
        assert tuple(names["samples"].shape) == (16, 1, 28, 28)
        if "mean" in names:
            given = torch.as_tensor(names["images"])
            mean = torch.as_tensor(names["mean"]).detach()
            torch.testing.assert_close(mean, model.encode(given).mean, atol=1e-5, rtol=1e-5)


def test_an_export_that_is_another_model_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(path: Path) -> export.Run:
        right = export._read_program(path)
        return lambda tensor: [one + 0.001 * (len(tensor) == 3) for one in right(tensor)]

    monkeypatch.setitem(export.FORMATS, "torch_export", export.FORMATS["torch_export"]._replace(read=read))
    with pytest.raises(SystemExit) as ending:
        cli.main(["export", str(run), "--format", "torch_export", "--out", str(tmp_path / "new")])
    assert ending.value.code == 1
    said = capsys.readouterr().err
    assert "encoder.pt2 is not the model: mean differs by up to 0.001 for a batch of 3, and may by 1e-05" in said
    assert not {path.suffix for path in (tmp_path / "new").iterdir()} & {".pt2", ".md"}


class OnlyPairs(nn.Module):
    """Takes batches of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1).reshape(x.shape)


def test_a_model_that_cannot_be_exported_is_reported(run_of: Compose, tmp_path: Path) -> None:
    words = (f"encoder.blocks=[{{dense:8}},{{_target_: {__name__}.OnlyPairs}}]", "latent.dim=4")
    model = vae.build(run_of("name=x", *words).config).eval()
    with pytest.raises(ExportError, match="the encoder cannot be written as torch_export"):
        export.export_halves(model, "torch_export", tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "file"], "--out: must be a folder, but file is a file"),
        (["--out", "file/new"], "Not a directory"),
        (["--device", "tpu9"], "there is no device 'tpu9'"),
        (["--best", "val.total"], "is the folder of one run: leave out best='val.total'"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(
    run: Path,
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ending:
        cli.main(["export", str(run), "--format", "safetensors", *words])
    assert ending.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Nothing was exported: ")
    assert told in said
    assert said.count("\n") == 1


def test_missing_packages_are_reported_with_the_command_that_installs_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest)
    )
    with pytest.raises(SystemExit) as ending:
        cli.main(["export", str(run)])
    assert ending.value.code == 1
    sentence = (
        "--format onnx takes onnx and onnxscript and onnxruntime, which are not installed: "
        "pip install 'vae-lab[export]'"
    )
    assert sentence in capsys.readouterr().err


def test_formats_gather_in_a_folder_but_runs_do_not_mix(folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export(folder, ["torch_export"], out)
    export.export(folder, ["safetensors"], out)
    text = (out / "README.md").read_text()
    assert "encoder.pt2" in text
    assert "vae_lab.load" in text
    result = results.read_result(folder)
    assert result is not None
    results.write_result(folder, result.model_copy(update={"seed": 1}))
    with pytest.raises(ExportError, match="holds the export of another run; choose another folder by --out"):
        export.export(folder, ["safetensors"], out)
    with pytest.raises(ExportError, match="is the run's own folder"):
        export.export(folder, ["safetensors"], folder)


def test_a_run_is_exported_even_without_its_images(folder: Path) -> None:
    written = export.export(folder, ["safetensors"], root="nowhere")
    assert "the card has no reconstructions: " in written.sentences[0]
    text = (written.folder / "README.md").read_text()
    assert "reconstructions.png" not in text
    assert "samples.png" in text


def test_a_rerun_removes_the_export(folder: Path) -> None:
    export.export(folder, ["safetensors"])
    results.clear(folder)
    assert not (folder / "export").exists()


def test_text_of_strangers_does_not_become_markup(folder: Path) -> None:
    result = results.read_result(folder)
    assert result is not None
    nasty = "a`b|c\n# d <script>\n---\nlicense: theirs"
    results.write_result(folder, result.model_copy(update={"encoder": nasty, "cell": nasty}))
    text = (export.export(folder, ["safetensors"]).folder / "README.md").read_text()
    assert not re.search(r"^# d|^license: theirs", text, re.MULTILINE)
    assert yaml.safe_load(text.split("\n---\n")[0])["license"] == "other"
    body = text.split("\n---\n", 1)[1]
    odd = [line for line in body.splitlines() if line.count("`") % 2 and not line.startswith("```")]
    assert odd == []


def test_the_command_knows_every_format() -> None:
    assert (*export.FORMATS, export.SAFETENSORS) == command.FORMATS
    assert all(f"  {name} " in command.EXPORT for name in command.FORMATS)
