"""Random command lines and YAML files: each gives a clear error message or a valid run, never a traceback."""

import contextlib
import io
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from vae_lab import cli
from vae_lab.config import config_folder, flatten

VALUES = [
    "0", "1", "2", "-1", "3.5", "1e400", "nan", "inf", "-inf", "null", "true", "false", "''", '""', "abc", "é", "β",
    "a b", "[]", "{}", "[1,2]", "{a:1}", "[1,[2,{b:null}]]", "[", "{", "'", '"', "\\", "${latent.dim}", "${no.such}",
    "${", "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${now:%Y}", "${vae_lab.cores:}", "${vae_lab.nothing:}",
    "${encoder}", "???", "1,2", "a,b", "range(1,3)", "range(3)", "choice(1,2)", "glob(*)", "glob(v*)",
    "interval(0,1)", "shuffle(1,2)", "sort(2,1)", "1_000", "0x10", "10**9", "99999999999999999999", "../x", "/tmp/x",
    "~", "-", "=", "==", "torch.nn.ReLU", "math.pi", "no.such.Thing", "vae_lab.Encoder", "vae_lab.NoSuchPart",
    "x" * 300, "\n", "\t", "a\nb", "#", "%", "!x", "[{down:4},{down:8}]", "[{down:4},{dense:3}]",
    "[{_target_:torch.nn.ReLU}]",
    "[{repeat:3}]", "[{up:2.5}]", "[null]", "[{blocks:[{blocks:[]}]}]", "[{down:4,up:4}]", "[{encdec:null}]",
    "[{unflatten:4},{up:4},{up:4}]", "2024-13-45",
]  # fmt: skip
CHOICES = {
    "data": ["fashion_mnist_3k"], "encoder": ["vanilla", "encdec", "resnet", "mlp"], "latent": ["vector"],
    "posterior": ["diagonal"], "prior": ["standard"], "likelihood": ["gaussian", "bernoulli"],
    "decoder": ["vanilla", "resize", "mlp"], "match": ["none", "flops"], "objective": ["mse_kl", "elbo"],
    "optimizer": ["adam", "adamw"], "scheduler": ["one_cycle", "constant", "cosine"], "trainer": ["default", "debug"],
    "logger": ["tensorboard", "csv"], "metrics": ["fast", "full"],
    "callbacks": ["default", "quiet"], "experiment": ["seed_grid", "five_seeds"],
}  # fmt: skip
FLAGS = [
    ["-m"], ["--multirun"], ["--cfg", "job"], ["--cfg", "all"], ["--cfg", "nothing"], ["--info"],
    ["--info", "plugins"], ["--resolve"], ["--nonsense"], ["-x"], ["--config-dir", "nowhere"], ["--config-dir"],
    ["--config-name", "nothing"], ["--config-path", "nowhere"], ["--package", "x"], ["--version"], ["--hydra-help"],
    ["--help"], ["--"], ["--run"], ["hydra.verbose=true"], ["hydra.run.dir=x"], ["hydra.sweep.dir=x"],
    ["hydra.sweep.subdir=x"], ["hydra.mode=MULTIRUN"], ["hydra.mode=SIDEWAYS"], ["hydra/launcher=basic"],
    ["hydra/launcher=nothing"], ["hydra/sweeper=nothing"], ["hydra.sweeper.params.seed='0,1'"],
    ["+hydra.sweeper.params=3"], ["hydra.job.chdir=true"], ["hydra.searchpath=[x]"],
    ["hydra.searchpath=[file://nowhere]"], ["hydra.callbacks.vae_lab._target_=no.such"], ["~hydra.callbacks.vae_lab"],
    ["hydra.output_subdir=null"], ["hydra/job_logging=none"], ["hydra.job_logging.root.level=LOUD"], ["hydra=3"],
    ["hydra.job.name="], ["hydra.sweeper.max_batch_size=-1"], ["hydra.job.env_set.X=1"], ["~hydra"],
]  # fmt: skip
SANE = [
    "seed=0,1", "seed=range(0,3)", "latent.dim=2", "latent.dim=2,4", "objective.beta=0", "optimizer.lr=0.1,0.01",
    "name=x", "trainer.max_epochs=1", "data.num_train=100", "data.num_val=0", "trainer.threads=1",
    "encoder=vanilla,encdec", "-m", "decoder=vanilla,resize", "match=parameters", "data.batch_size=7",
    "+trainer.max_steps=3", "scheduler=null", "logger=null", "encoder.blocks=[{down:4}]",
    "encoder=mlp encoder.activation=tanh", "callbacks=null", "data.subset=stratified",
    "objective=elbo", "likelihood.sigma=0.1", "likelihood=bernoulli", "data.binarize=dynamic",
]  # fmt: skip
GARBAGE = "abz019.,=+~-_[]{}()'\"\\/:;#$%&*!?@ \t\nβé\x00\u202e😀"


def shipped() -> dict[str, Any]:
    """The first choice of each group: group → its YAML."""
    return {
        group: yaml.safe_load((config_folder() / group / f"{names[0]}.yaml").read_text())
        for group, names in CHOICES.items()
    }


def words(chance: random.Random, keys: list[str]) -> list[str]:
    """A command line, mostly with keys that exist and values that some keys accept."""
    line: list[str] = []
    for _ in range(chance.randint(1, 4)):
        kind = chance.random()
        if kind < 0.2:
            line.append(chance.choice(SANE))
        elif kind < 0.5:
            line.append(
                f"{chance.choice(['', '', '', '', '+', '++', '~'])}{_key(chance, keys)}={chance.choice(VALUES)}"
            )
        elif kind < 0.7:
            group = chance.choice([*CHOICES])
            line.append(f"{group}={','.join(chance.choices([*CHOICES[group], 'nothing'], k=chance.randint(1, 2)))}")
        elif kind < 0.85:
            line += chance.choice(FLAGS)
        elif kind < 0.95:
            line.append("".join(chance.choices(GARBAGE, k=chance.randint(0, 12))))
        else:
            line.append(f"~{_key(chance, keys)}")
    return line


def _key(chance: random.Random, keys: list[str]) -> str:
    key = chance.choice(keys)
    if chance.random() < 0.2:
        index = chance.randrange(len(key))
        key = key[:index] + chance.choice(GARBAGE.replace("=", "")) + key[index + chance.randint(0, 1) :]
    return key


def document(chance: random.Random, node: Any) -> bytes:
    """A YAML file: a shipped one with a change, or random bytes."""
    kind = chance.random()
    if kind < 0.15:
        return chance.randbytes(chance.randint(0, 40))
    if kind < 0.3:
        return "".join(chance.choices(GARBAGE, k=chance.randint(0, 60))).encode("utf-8", "surrogatepass")
    if kind < 0.45:
        text = yaml.safe_dump(node).encode()
        index = chance.randrange(len(text) + 1)
        return (
            text[:index]
            + chance.choice([b":", b"[", b"\t", b"- ", b"&a ", b"*a", b"!!int ", b"\xff", b"'"])
            + text[index:]
        )
    return yaml.safe_dump(_changed(chance, node), allow_unicode=True).encode("utf-8", "surrogatepass")


def _changed(chance: random.Random, node: Any) -> Any:
    odd = [
        None, True, -1, 0, 2.5, 10**30, float("nan"), float("inf"), "", "abc", "${no.such}", "???", [], {}, [1],
        {"a": 1}, {1: 2}, {None: 1}, {True: 1}, {"": 1}, {"_target_": 3}, {"_target_": "no.such"},
        {"_target_": "math.pi"}, [[]], "é", {"defaults": [1]}, {"down": -4}, {"blocks": None},
        {"repeat": 10**9, "down": 4}, {"a.b": 1}, {"_args_": [1]}, {"_recursive_": False}, {"_convert_": "no"},
        "${encoder}", "${.}", "${..latent}", "2024-13-45",
    ]  # fmt: skip
    if chance.random() < 0.15 or node in ({}, [], None) or not isinstance(node, dict | list):
        return chance.choice(odd)
    if isinstance(node, list):
        index = chance.randrange(len(node))
        if chance.random() < 0.3:
            return [*node[:index], chance.choice(odd), *node[index:]]
        return [*node[:index], _changed(chance, node[index]), *node[index + 1 :]]
    key = chance.choice([*node])
    if chance.random() < 0.15:
        return {name: value for name, value in node.items() if name != key}
    if chance.random() < 0.2:
        return node | {
            chance.choice(["defaults", "_target_", "_partial_", "x", "repeat", 3, "hydra", "name"]): chance.choice(odd)
        }
    return node | {key: _changed(chance, node[key])}


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Run `count` command lines, some with a file; `plan=true` stops valid ones before they train."""
    base = shipped()
    keys = [key for group, node in base.items() for key in flatten({group: node} if group != "experiment" else node)]
    keys += ["name", "seed", "plan", "encoder", "encoder.blocks", "decoder.blocks", "nothing", "match.encoder"]
    codes: Counter[int] = Counter()
    broken = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for case in range(count):
            chance = random.Random(f"{seed}/{case}")
            line = words(chance, keys)
            if chance.random() < 0.4:
                group = chance.choice([*CHOICES])
                file = Path("my_conf", group, "fuzzed.yaml")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(document(chance, base[group]))
                line = ["--config-dir", "my_conf", f"{group}=fuzzed", *(line if chance.random() < 0.3 else [])]
            command = "describe" if chance.random() < 0.1 else "train"
            code, output = called([command, *line, "plan=true"])
            codes[code] += 1
            left = [str(path) for path in Path().iterdir() if path.name != "my_conf"]
            if (
                code not in (0, 1, 2)
                or "Traceback" in output
                or left
                or (code == 1 and "Nothing was run:" not in output)
            ):
                broken.append({"case": case, "words": line, "code": code, "left": left, "said": output[-2000:]})
                if left:
                    break
    return {"cases": count, "codes": dict(sorted(codes.items())), "broken": broken}


def called(line: list[str]) -> tuple[int, str]:
    """Run `vae-lab` with these arguments in this process: its exit code and its output."""
    output, state = io.StringIO(), (sys.argv[:], sys.path[:], dict(os.environ))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = exit_code(line)
    sys.argv, sys.path = state[0], state[1]
    os.environ.clear()
    os.environ.update(state[2])
    return code, output.getvalue()


def exit_code(line: list[str]) -> int:
    """The exit code of a command; 3 for an uncaught exception."""
    try:
        cli.main(line)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 3
    return 0
