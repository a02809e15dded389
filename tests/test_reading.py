"""Files of a run that are no files, too large, or stand for more than they are: refused at once, with their path."""

import json
import math
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from runs import write_run

from vae_lab import results
from vae_lab.report import prepare
from vae_lab.results import reading
from vae_lab.results.reading import UnreadableError, archive, check_entries, read_bytes, read_json
from vae_lab.results.trials import TrialsError, read_trials
from vae_lab.study.gather import StudyError, find
from vae_lab.sweep.checks import check_folders
from vae_lab.training.checkpoints import CheckpointError, epochs_kept, read_checkpoint

PACKAGE = Path(__file__).parents[1] / "vae_lab"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(path.parent)  # the name of a socket must be short
        one.bind(path.name)


KINDS: dict[Callable[[Path], Any], str] = {
    pipe: "is a pipe, not a file",
    device: "is a device, not a file",
    Path.mkdir: "is a folder, not a file",
    listening: "is a socket, not a file",
    endless: "is larger than any",
}
FILES = ("result.json", "config.yaml", "history.csv", "pictures.npz", ".hydra/hydra.yaml", "checkpoints/last.ckpt")


def put(make: Callable[[Path], Any], path: Path) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.unlink(missing_ok=True)
    make(path)
    return path


# --- Every reader ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "x")
    path = put(make, run / name)
    if make is not listening:
        with pytest.raises(UnreadableError, match=KINDS[make]):
            read_bytes(path)
    else:
        with pytest.raises(OSError, match=r"socket|No such device"):
            read_bytes(path)
    read = {
        "result.json": results.read_result,
        "config.yaml": results.read_config,
        "history.csv": results.read_history,
        "pictures.npz": results.read_pictures,
        ".hydra/hydra.yaml": results.read_config_folders,
    }
    if name in read:
        assert not read[name](run)
    else:
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            epochs_kept(path.parent, {})
    if name == "result.json":
        holes = prepare([tmp_path / "x"]).study.holes
        assert [hole.reason for hole in holes] == [f"result.json is damaged: {path}"]


@pytest.mark.parametrize("make", [pipe, device, endless])
def test_a_damaged_file_is_a_hole_with_its_path(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    run = write_run(tmp_path / "x")
    result = results.read_result(run)
    assert result is not None
    results.write_result(run, result.model_copy(update={"files": {"history.csv": "0" * 64}}))
    path = put(make, run / "history.csv")
    (hole,) = prepare([tmp_path / "x"]).study.holes
    assert str(path) in hole.reason


@pytest.mark.parametrize("make", [pipe, device, Path.mkdir, endless])
def test_a_record_of_a_search_that_is_no_file_is_reported(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    put(make, tmp_path / "search.json")
    with pytest.raises(OSError, match=r"search\.json"):
        read_trials(tmp_path)


def test_links_to_files_are_followed_and_links_to_nothing_are_missing(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "result.json").symlink_to("blob")
    assert read_json(tmp_path / "result.json") == {}
    (tmp_path / "config.yaml").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "config.yaml")


def test_no_other_module_opens_files_of_runs() -> None:
    """`reading` opens them; the others write, or read files of vae_lab itself."""
    known = {
        "results/reading.py": 3,
        "results/writing.py": 2,  # syncs what was written
        "trained/export.py": 2,  # exports that were just written
        "training/processes.py": 3,  # files of this command's own processes
        "training/machine.py": 2,  # /proc
        "config/signatures.py": 1,
    }
    rooms = ("results", "study", "trained", "training", "report", "search", "sweep", "evaluation", "model")
    opens = re.compile(r"(?<![\w.])open\(|\.read_text\(|(?<!reading)\.read_bytes\(|np\.load\(|\.open\(")
    for room in rooms:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            name = str(path.relative_to(PACKAGE))
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if opens.search(line)]
            if name == "model/classifier.py":  # it ships with the package
                continue
            assert len(lines) <= known.get(name, 0), (name, lines)


# --- Too much in a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['{"a": ' + "9" * 4000 + "}", '{"a": 9223372036854775808}', "[" * 300 + "]" * 300, '"\\ud800"', "{", ""]
)
def test_json_of_too_many_digits_or_levels_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "result.json")
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(TrialsError, match="is no record of a search"):
        read_trials(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"terms": {str(number): "nats" for number in range(2000)}},
        {"test": {str(number): 0.5 for number in range(2000)}},
        {"timing": {"epoch_seconds": [1e400]}},
        {"seed": 10**30},
        {"train": []},
    ],
)
def test_a_result_of_too_much_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_run(tmp_path / "x") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert results.read_result(path.parent) is None


def test_long_texts_of_a_result_are_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x", status="failed", error="x" * 10**6, device="y" * 10**6)
    result = results.read_result(run)
    assert result is not None
    assert len(result.error or "") < 10**5
    assert len(result.environment.device) < 1000


HEAD = "epoch,split,total,reconstruction,kl,seconds"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}\n{'9' * 4200},train,1,1,1,1\n",
        f"{HEAD}\n{'9' * 5000},train,1,1,1,1\n",
        f"{HEAD}\n-1,train,1,1,1,1\n",
        f"{HEAD}\n1,{'x' * 200_000},1,1,1,1\n",
        "".join(f"{HEAD}\n1,{split},1,1,1,1\n" for split in "abc"),
        f"{HEAD}\n1,train,\x00,1,1,1\n",
    ],
)
def test_a_history_of_odd_numbers_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.csv").write_text(text)
    assert results.read_history(tmp_path) == {}


def test_of_a_history_without_end_the_first_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_lab.results.files.MOST_VALUES", 600)
    (tmp_path / "history.csv").write_text(f"{HEAD}\n" + "1,train,1,1,1,1\n" * 1000)
    assert len(results.read_history(tmp_path)["train"]["total"]) == 100


def npy(path: Path, shape: tuple[int, ...], content: bytes = b"", descr: str = "|u1") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as found, found.open("originals.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: npy(path, (10, 1, 10**6, 10**6)),
        lambda path: npy(path, (1, 1, 2, 2), bytes(5)),
        lambda path: npy(path, (1, 1, 2, 2), bytes(32), "<f8"),
        lambda path: npy(path, (1, 1, 2, -2), bytes(4)),
        lambda path: npy(path, (1, 1, 2, 2), bytes(8), "|O"),
        lambda path: path.write_bytes(np.zeros((1, 1, 2, 2), np.uint8).dumps()),
    ],
)
def test_arrays_that_are_not_what_their_header_says_are_not_built(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "pictures.npz")
    assert results.read_pictures(tmp_path) == {}


def test_an_archive_that_expands_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reading.LARGEST, "pictures.npz", 2**20)
    npy(tmp_path / "pictures.npz", (1, 1, 1024, 1024), bytes(2**20))
    assert (tmp_path / "pictures.npz").stat().st_size < 2**16
    assert results.read_pictures(tmp_path) == {}
    npy(tmp_path / "last.ckpt", (1, 1, 1024, 1024), bytes(2**20))  # torch compresses nothing
    with pytest.raises(zipfile.BadZipFile, match="contents are too large"), archive(tmp_path / "last.ckpt"):
        pass


def test_an_archive_with_a_long_list_of_files_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_INDEX", 1000)
    with zipfile.ZipFile(tmp_path / "pictures.npz", "w") as found:
        for number in range(100):
            found.writestr(str(number), b"")
    with pytest.raises(zipfile.BadZipFile, match="list of files is too long"), archive(tmp_path / "pictures.npz"):
        pass


def test_pictures_are_read_as_they_were_written(tmp_path: Path) -> None:
    images = np.arange(48, dtype=np.uint8).reshape(2, 1, 4, 6)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "pictures.npz", originals=images, samples=np.asfortranarray(images))
        found = results.read_pictures(tmp_path)
        assert [*found] == ["originals", "samples"]
        assert all(np.array_equal(one, images) for one in found.values())


# --- Checkpoints -------------------------------------------------------------------------------------------

COUNTS = {"ready": 1, "started": 1, "processed": 1, "completed": 1}


def checkpoint() -> dict[str, Any]:
    return {
        "vae_lab": {"origin": {"seed": 0}, "epochs": 1, "stopped": False},
        "state_dict": {"weight": torch.zeros(2)},
        "optimizer_states": [{}],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"epoch_progress": {"current": COUNTS}}},
        "callbacks": {"Checkpoints": {"best": None}},
    }


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 0


@pytest.mark.parametrize(
    "change",
    [
        {"vae_lab": []},
        {"vae_lab": {"origin": [], "epochs": 1, "stopped": False}},
        {"vae_lab": {"origin": {"seed": torch.zeros(2)}, "epochs": 1, "stopped": False}},
        *({"vae_lab": {"origin": {}, "epochs": epochs, "stopped": False}} for epochs in (math.inf, -1, "x", 10**30)),
        {"state_dict": []},
        {"loops": {}},
        *(
            {"loops": {"fit_loop": {"epoch_progress": {"current": COUNTS | {"completed": count}}}}}
            for count in (-(10**9), torch.zeros(1).expand(10**6, 10**6), torch.ones(2), "1")
        ),
        {"callbacks": {}},
        {"callbacks": []},
        {"state_dict": {"weight": torch.zeros(1).expand(10**6, 10**6)}},
        {"x": nested(200)},
    ],
)
def test_a_checkpoint_of_another_form_is_not_resumed(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint(), path)
    assert epochs_kept(tmp_path, {"seed": 0}) == 1
    torch.save(checkpoint() | change, path)
    with pytest.raises(CheckpointError, match="last.ckpt is not a checkpoint of this version"):
        read_checkpoint(path)


# --- Folders -----------------------------------------------------------------------------------------------


def test_a_tree_without_end_is_not_walked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    deep = tmp_path / "x" / Path(*("d" * 100))
    deep.mkdir(parents=True)
    (deep / "seed-7").mkdir()
    (tmp_path / "x" / "circle").symlink_to(tmp_path / "x")
    assert find([tmp_path / "x"]) == [run]
    with pytest.raises(StudyError, match="there are no runs"):
        find([tmp_path / "x" / "d"])


@pytest.mark.parametrize("name", ["train.log", ".hydra/config.yaml", "events.out", "checkpoints/x", "hparams.yaml"])
@pytest.mark.parametrize("make", [pipe, device, lambda path: path.symlink_to("/etc/hostname")])
def test_nothing_is_trained_where_a_file_cannot_be_written(
    run_of: Compose, name: str, make: Callable[[Path], Any]
) -> None:
    run = run_of("name=x")
    check_folders([run])
    path = put(make, run.directory / name)
    if name.startswith("checkpoints") or (name == "events.out" and make is not pipe):
        check_folders([run])  # what links lead to is not written
        return
    with pytest.raises(ValueError, match=rf"name: \S*{path.name} is a (pipe|device|link), not a file"):
        check_folders([run])


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".result.partial.json").symlink_to("precious")
    results.write_text(tmp_path / "result.json", "{}")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "result.json").is_symlink()
    os.mkfifo(tmp_path / ".config.partial.yaml")
    results.write_text(tmp_path / "config.yaml", "a: 1\n")
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
    (tmp_path / ".hydra").symlink_to(tmp_path)
    with pytest.raises(UnreadableError, match="is a link, not a folder"):
        check_entries(tmp_path)


def test_a_command_ends_at_a_pipe_with_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    put(pipe, run / "result.json")
    code = "from vae_lab import cli; cli.main(['report', 'x'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert "result.json is damaged" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
