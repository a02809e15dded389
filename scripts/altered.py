"""Altered run folders: each command reports them in a sentence or works, never hangs, and never takes much memory."""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from fuzz import exit_code

RUN = "outputs/a/CELL/seed-0"
WORDS = (
    "latent.dim=4", "data.num_train=64", "data.num_val=20", "data.num_test=20", "trainer.max_epochs=2",
    "trainer.threads=1", "callbacks.pages.points=10", "name=a",
)  # fmt: skip
TRAIN = ["train", *WORDS]
COMMANDS = {
    "report": ["report", "outputs/a"],
    "evaluate": ["evaluate", RUN, "--metrics", "fast"],
    "load": ["generate", RUN, "--what", "reconstructions", "--count", "4", "--out", "sheet.png"],
    "generate": ["generate", "outputs/a", "--best", "val.total", "--count", "4", "--out", "sheet.png"],
    "export": ["export", RUN, "--format", "safetensors"],
    "plan": [*TRAIN, "plan=true"],
    "resume": TRAIN,
}
LONGEST, LARGEST = 10, 2**30
"""Seconds of processor time and bytes beyond the imports that a command may take."""
PATIENCE = 120
"""Seconds after which a command that waits counts as hanging."""

ODD: list[Any] = [
    None, True, -1, 0, 2.5, 10**30, -(10**30), 2**63, 1e300, -1e300, math.inf, -math.inf, math.nan, "", "abc",
    "é\u202e", "\x1b[2J", "=1+1", "x" * 100_000, [], {}, [1], {"a": 1}, [[]], [None], {"": {}}, [1e300] * 1000,
    {"total": []}, {"x" * 1000: 1}, list(range(100_000)), {str(one): one for one in range(3000)},
    {"_target_": "os.system"}, "${oc.env:HOME}", "<b>|`x`\n", "9" * 5000,
]  # fmt: skip


def _deep(levels: int) -> Any:
    node: Any = 1
    for _ in range(levels):
        node = [node]
    return node


def changed(chance: random.Random, node: Any) -> Any:
    """A tree with one odd value in it."""
    if not isinstance(node, dict | list) or not node or chance.random() < 0.1:
        return chance.choice([*ODD, _deep(90), [node], {"a": node}])
    if isinstance(node, list):
        index = chance.randrange(len(node))
        return [*node[:index], changed(chance, node[index]), *node[index + 1 :]]
    key = chance.choice([*node])
    match chance.randrange(6):
        case 0:
            return {name: value for name, value in node.items() if name != key}
        case 1:
            return node | {chance.choice(["x", "_target_", "repeat", "schema", "seed"]): chance.choice(ODD)}
    return node | {key: changed(chance, node[key])}


# --- Alterations -------------------------------------------------------------------------------------------


def replaced(chance: random.Random, path: Path) -> None:
    """Put something that is not a file in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match chance.randrange(8):
        case 0 | 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path.parent)
        case 4:
            path.mkdir()
        case 5:
            path.symlink_to("nowhere/at/all")
        case 6:
            with open(path, "wb") as file:
                file.truncate(chance.choice([2**31, 2**40]))
        case 7:
            path.symlink_to("/proc/self/mem")


def harmed(chance: random.Random, path: Path) -> None:
    """Change its bytes."""
    content = bytearray(path.read_bytes() if path.is_file() else b"")
    match chance.randrange(4):
        case 0:
            del content[chance.randrange(len(content) + 1) :]
        case 1:
            for _ in range(chance.choice([1, 5, 50])):
                content[chance.randrange(min(len(content), chance.choice([200, 10**9])))] = chance.randrange(256)
        case 2:
            content += chance.randbytes(chance.choice([1, 1000]))
        case 3:
            junk = [b"", b"\0" * 10**6, b"[" * 10**6, b"9" * 10**6, b"\xff\xfe", b"{}", b"[]"]
            content = bytearray(chance.choice(junk))
    path.write_bytes(content)


def of_json(chance: random.Random, path: Path) -> None:
    """Change a value, in JSON."""
    tree = json.loads(path.read_text())
    for _ in range(chance.choice([1, 1, 3])):
        tree = changed(chance, tree)
    text = json.dumps(tree)
    if chance.random() < 0.2:
        text = text.replace("null", chance.choice(["9" * 4200, "1e999", "[" * 150 + "]" * 150, '"\\ud800"', "-0"]), 1)
    path.write_text(text)


def of_yaml(chance: random.Random, path: Path) -> None:
    """Change a value, in YAML."""
    if chance.random() < 0.2:
        bombs = [
            "a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(20)), "[" * 100_000, "- 1\n" * 250_000,
            "a: " + "9" * 90 + "\n", "a: 0x" + "f" * 5000, "? [1]\n: 2\n", "<<: {a: 1}\n", "a: 2001-99-99\n",
            "a: 1:59:59\n",
        ]  # fmt: skip
        path.write_text(chance.choice(bombs))
        return
    tree = yaml.safe_load(path.read_text())
    for _ in range(chance.choice([1, 1, 3])):
        tree = changed(chance, tree)
    path.write_text(yaml.safe_dump(tree))


def layers(chance: random.Random, path: Path) -> None:
    """Networks that take long to build."""
    tree = yaml.safe_load(path.read_text())
    lstm = {"_target_": "torch.nn.LSTM", "input_size": 4, "hidden_size": 4, "num_layers": chance.choice([1, 1900])}
    nested: Any = {"encdec": 4, "depth": 4}
    for _ in range(15):
        nested = {"blocks": [nested, nested] if chance.random() < 0.3 else [nested]}
    blocks = chance.choice([
        [{"encdec": 4, "depth": 4, "repeat": 1000}], [{"conv": 4, "repeat": 1000}], [nested], [lstm],
        [{"_target_": "torch.nn.Flatten", "start_dim": 2}, lstm],
        [{"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Flatten", "start_dim": 2},
                                                        lstm | {"input_size": 784}]}],
        [{"_target_": "torch.nn.TransformerEncoder", "num_layers": 1500, "encoder_layer": {
            "_target_": "torch.nn.TransformerEncoderLayer", "d_model": 8, "nhead": 2}}],
        [{"_target_": "torch.nn.Upsample", "scale_factor": 1000}], [{"dense": 2**20}, {"dense": 2**20}],
    ])  # fmt: skip
    tree[chance.choice(["encoder", "decoder"])]["blocks"] = blocks
    path.write_text(yaml.safe_dump(tree))


def of_history(chance: random.Random, path: Path) -> None:
    """Too many rows, columns or digits."""
    head = "epoch,split,total,reconstruction,kl,seconds"
    odd = ("1e308", "-1e308", "inf", "nan", "1e-320", "0")
    texts = [
        head + "\n" + "1,train,0.1,0.1,0.1,1\n" * 700_000,
        head + "".join(f",x{n}" for n in range(1000)) + "\n" + ("1,train,1,1,1,1" + ",1" * 1000 + "\n") * 1000,
        head + "\n" + "".join(f"{n},train,{one},{one},{one},1\n" for n, one in enumerate(odd)),
        head + "\n" + "9" * 4200 + ",train,1,1,1,1\n",
        head + "\n1,train," + "9" * 100_000 + ",1,1,1\n",
        head + "\n" + "".join(f"{n},{n},1,1,1,1\n" for n in range(1000)),
        head + "\n-5,val,1,1,1,1\n" * 3,
    ]
    path.write_text(chance.choice(texts))


def of_pictures(chance: random.Random, path: Path) -> None:
    """Archives that expand, and arrays of odd types and shapes."""
    header = io.BytesIO()
    match chance.randrange(7):
        case 0:
            with (
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
                archive.open("originals.npy", "w") as file,
            ):
                for _ in range(300):
                    file.write(bytes(2**20))
        case 1:
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": (10, 1, 10**6, 10**6)}
            )
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("originals.npy", header.getvalue())
        case 2:
            with zipfile.ZipFile(path, "w") as archive:
                for number in range(chance.choice([2000, 60_000])):
                    archive.writestr(f"{number}.npy", b"")
        case 3:
            np.savez(path, originals=np.array([{"a": 1}], dtype=object))
        case 4:
            shape = chance.choice([(1, 1, 1, 10**7), (10**6, 1, 1, 1), (1, 10**6, 1, 1)])
            np.savez(path, originals=np.zeros(shape, np.uint8))
        case 5:
            images = np.zeros((10, 3, 1000, 1000), np.uint8)
            np.savez(path, originals=images, reconstructions=images)
        case 6:
            np.savez(path, originals=np.zeros((0, 1, 2, 2), np.uint8), samples=np.zeros((3, 1, 2, 2), np.float64))


def _expanding(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))


def of_weights(chance: random.Random, path: Path) -> None:
    """A header of odd sizes and names."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + length])
    if chance.random() < 0.2:
        tree = {f"w{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    tree = changed(chance, tree)
    header = json.dumps(tree).encode()
    claimed = chance.choice([len(header), len(header), 2**24 - 1, 2**62])
    path.write_bytes(claimed.to_bytes(8, "little") + header + content[8 + length :])


def of_checkpoint(chance: random.Random, path: Path) -> None:
    """A whole checkpoint with odd values in it, or an archive that expands."""
    if chance.random() < 0.15:
        _expanding(path, "last/data.pkl")
        return
    loaded = torch.load(path, weights_only=True)
    large = torch.zeros(1).expand(10**6, 10**6)
    odd = chance.choice([math.inf, -1, 10**30, [], {}, None, "x", large, _deep(90), [1] * 10**5])
    match chance.randrange(7):
        case 0:
            loaded["vae_lab"] = odd
        case 1:
            loaded["vae_lab"][chance.choice(["origin", "epochs", "stopped"])] = odd
        case 2:
            loaded["vae_lab"]["origin"][chance.choice(["seed", "torch", "configuration"])] = odd
        case 3:
            loaded[chance.choice([*loaded])] = odd
        case 4:
            loaded["callbacks"][chance.choice([*loaded["callbacks"]])] = odd
        case 5:
            progress = loaded["loops"]["fit_loop"]["epoch_progress"]["current"]
            progress[chance.choice([*progress])] = odd
        case 6:
            key = chance.choice([*loaded["state_dict"]])
            loaded["state_dict"][key] = odd
    torch.save(loaded, path)


def of_search(chance: random.Random, path: Path) -> None:
    """A record of a search, with odd values in it."""
    count = chance.choice([5, 5, 5, 20_000])
    trials = [
        {"number": n, "values": {"latent.dim": 2 + n % 5}, "state": "finished", "loss": 0.1 + n, "run": f"a/seed-{n}"}
        for n in range(count)
    ]
    record = {"schema": 1, "metric": "val.total", "sampler": "tpe", "seed": 0, "fixed": [], "trials": trials,
              "space": {"latent.dim": {"low": 2.0, "high": 6.0, "whole": True}}}  # fmt: skip
    path.write_text(json.dumps(changed(chance, record) if count < 10 or chance.random() < 0.5 else record))


def deep_folders(chance: random.Random, path: Path) -> None:
    """Folders in folders, and links in a circle."""
    inner = path
    for level in range(chance.choice([50, 500])):
        inner = inner / "d"
        if len(os.fsencode(inner)) > 3000:
            break
        inner.mkdir(parents=True)
        if level % 40 == 0:
            (inner / "circle").symlink_to(path)
    (path / f"seed-{chance.randrange(5, 9)}").symlink_to(".")


SWEEP, REPORT, READ = "outputs/a", ("report",), ("report", "evaluate", "load", "generate", "export", "plan")
LOADED, TRAINED = ("evaluate", "load", "generate", "export"), ("plan", "resume")
ANY = tuple(COMMANDS)
ALTERATIONS: list[tuple[Callable[[random.Random, Path], None], str, tuple[str, ...]]] = [
    *((replaced, f"{RUN}/{name}", READ) for name in ("result.json", "config.yaml", "history.csv", "pictures.npz")),
    *((replaced, f"{RUN}/{name}", ANY) for name in ("model.safetensors", ".lock", ".owner.json", "train.log")),
    *((replaced, f"{RUN}/{name}", TRAINED) for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints",
        ".hydra", ".hydra/hydra.yaml", ".hydra/config.yaml", "hparams.yaml", "model.txt", ".result.partial.json",
        ".config.partial.yaml", "result.json", "traceback.txt")),
    (replaced, f"{SWEEP}/search.json", REPORT), (replaced, f"{SWEEP}/report", REPORT),
    (replaced, f"{RUN}/export", ("export",)),
    (replaced, f"{SWEEP}/report/.report.partial.md", REPORT), (replaced, f"{RUN}/.result.partial.json", ("evaluate",)),
    *((harmed, f"{RUN}/{name}", READ) for name in ("result.json", "config.yaml")),
    *((harmed, f"{RUN}/{name}", REPORT) for name in ("history.csv", "pictures.npz")),
    (harmed, f"{RUN}/model.safetensors", LOADED), (harmed, f"{RUN}/checkpoints/last.ckpt", TRAINED),
    *[(of_json, f"{RUN}/result.json", READ)] * 5, *[(of_yaml, f"{RUN}/config.yaml", READ)] * 5,
    *[(layers, f"{RUN}/config.yaml", LOADED)] * 2, (of_yaml, f"{RUN}/.hydra/hydra.yaml", TRAINED),
    *[(of_history, f"{RUN}/history.csv", REPORT)] * 2, *[(of_pictures, f"{RUN}/pictures.npz", REPORT)] * 2,
    *[(of_weights, f"{RUN}/model.safetensors", LOADED)] * 2,
    *[(of_checkpoint, f"{RUN}/checkpoints/last.ckpt", TRAINED)] * 4,
    *[(of_search, f"{SWEEP}/search.json", REPORT)] * 2, (deep_folders, SWEEP, ("report", "generate")),
]  # fmt: skip


def altered(chance: random.Random) -> tuple[str, str]:
    """Alter the folder; the alteration and a command that reads it."""
    alter, name, readers = chance.choice(ALTERATIONS)
    command = chance.choice(readers)
    run = next(Path(SWEEP).glob("*/seed-0"))
    if command == "resume" or (command == "plan" and "ckpt" in name):  # as a kill after the first epoch leaves it
        shutil.copyfile("last.ckpt", run / "checkpoints/last.ckpt")
        if not name.endswith("result.json"):
            (run / "result.json").unlink()
    path = Path(name.replace(RUN, str(run)))
    alter(chance, path)
    stored = run / "result.json"
    with contextlib.suppress(OSError):  # a stranger would not forget the checksum
        if (
            path.parent == run
            and path != stored
            and path.is_file()
            and stored.is_file()
            and path.stat().st_size < 10**9
        ):
            result = json.loads(stored.read_text())
            if path.name in result["files"] and chance.random() < 0.8:
                result["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
                stored.write_text(json.dumps(result))
    return f"{alter.__name__} {name}", command


# --- The command -------------------------------------------------------------------------------------------


def prepared(folder: Path) -> None:
    """Train the run, with the checkpoint of its first epoch beside it."""
    folder.mkdir()
    from vae_lab.training.checkpoints import Checkpoints

    save = Checkpoints.on_train_epoch_end

    def keep(self: Any, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        if not (folder / "last.ckpt").exists():
            shutil.copyfile(self.folder / "last.ckpt", folder / "last.ckpt")

    Checkpoints.on_train_epoch_end = keep  # type: ignore[method-assign]
    code, output, _, _ = in_child(TRAIN, folder)
    Checkpoints.on_train_epoch_end = save  # type: ignore[method-assign]
    if code != 0:
        raise SystemExit(f"the run to alter ended with {code}:\n{output}")


def in_child(words: list[str], folder: Path) -> tuple[int | None, str, float, int]:
    """Run a command in a forked process: exit code (None if it hangs), output, processor seconds, extra memory."""
    log = folder / "said.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 4
        try:
            os.chdir(folder)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            Path("/proc/self/clear_refs").write_text("5")
            before = _memory("VmRSS")
            code = exit_code(words)
            sys.stdout.flush()
            sys.stderr.flush()
            (folder / "memory.txt").write_text(str(_memory("VmHWM") - before))
        finally:
            os._exit(code)
    waited = time.monotonic()
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - waited > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            return None, log.read_text(errors="replace"), 0.0, 0
        time.sleep(0.01)
    memory = folder / "memory.txt"
    taken = int(memory.read_text()) if memory.exists() else 0
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), usage.ru_utime + usage.ru_stime, taken


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def alterations(place: Path, count: int, seed: int, budget: float = math.inf) -> dict[str, Any]:
    """Alter a run's folder in `count` ways, and let a command read each."""
    prepared(place / "whole")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    codes: Counter[str] = Counter()
    broken = []
    slowest, largest, case, started = 0.0, 0, 0, time.monotonic()
    for case in range(count):
        if time.monotonic() - started > budget:
            break
        chance = random.Random(f"{seed}/{case}")
        folder = place / "altered"
        shutil.copytree(place / "whole", folder, symlinks=True)
        with contextlib.chdir(folder):
            change, command = altered(chance)
            run = next(iter(Path(SWEEP).glob("*/seed-0")))
        words = [word.replace(RUN, str(run)) for word in COMMANDS[command]]
        code, output, seconds, memory = in_child(words, folder)
        shutil.rmtree(folder)
        codes[f"{command} {code}"] += 1
        slowest, largest = max(slowest, seconds), max(largest, memory)
        if code not in (0, 1) or "Traceback" in output or seconds > LONGEST or memory > LARGEST:
            broken.append({"case": case, "change": change, "command": command, "code": code, "seconds": seconds,
                           "memory": memory, "said": output[-1500:]})  # fmt: skip
    return {
        "folders": case + 1, "codes": dict(sorted(codes.items())), "slowest": round(slowest, 1),
        "largest": largest, "broken": broken,
    }  # fmt: skip
