"""The words of a command line before Hydra reads them.

Here are the mistakes that Hydra would report in its own terms, or not at all.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vae_lab.config import ConfigError, Problem, choices, keys
from vae_lab.config.identity import BESIDE_TRAINING
from vae_lab.config.terminal import shown

WITH_VALUE = {
    "--config-dir": "-cd", "--config-path": "-cp", "--config-name": "-cn", "--package": "-p", "--cfg": "-c",
    "--experimental-rerun": None, "--info": "-i",
}  # fmt: skip
"""Hydra's flags that take a value: long → short."""
WITHOUT = {
    "--help": "-h", "--hydra-help": None, "--version": None, "--resolve": None, "--run": "-r", "--multirun": "-m",
    "--shell-completion": "-sc",
}  # fmt: skip
OVERRIDE = re.compile(r"([~+]*)([^=@]+)(@[^=]*)?=(.*)", re.DOTALL)


class Words(NamedTuple):
    """A command line in two parts, whatever their order was."""

    overrides: list[str]
    flags: list[str]
    config_dir: Path | None

    @classmethod
    def read(cls, words: Sequence[str]) -> "Words":
        """Sort the words of a command line, and correct those whose meaning is clear.

        Args:
            words: as typed.

        Raises:
            ConfigError: with every mistake that Hydra would not name.
        """
        overrides, flags, folders = [], [], []
        problems: list[Problem] = []
        rest = [*words]
        while rest:
            word = rest.pop(0)
            if word == "--" or not re.match(r"-+[A-Za-z]", word):
                overrides.append(word)
                continue
            name, equals, value = word.partition("=")
            long = _long(name)
            if long is None:
                problems.append(_unknown_flag(word, rest))
                continue
            flags.append(word)
            takes_next = long in WITH_VALUE and not equals and rest and (long != "--info" or "=" not in rest[0])
            if takes_next:
                flags.append(rest.pop(0))
            if long == "--config-dir" and (equals or takes_next):
                folders.append(value if equals else flags[-1])
                del flags[-1 if equals else -2 :]
        found = [*_spaces(overrides)]
        problems += found
        corrected = [] if found else [_corrected(word, problems) for word in overrides]
        for folder in folders:
            problems += _config_dir(folder, is_primary=any(flag.startswith(("--config-n", "-cn")) for flag in flags))
        if problems:
            raise ConfigError(*problems)
        return cls(corrected, flags, Path(folders[-1]).absolute() if folders else None)

    def shadows(self) -> list[str]:
        """A sentence for each choice of ours that a file of the user's replaces."""
        if self.config_dir is None:
            return []
        return [
            f"{group}={choice} is {shown(self.config_dir / group / f'{choice}.yaml')}, not the file of vae_lab."
            for group, ours in keys.groups().items()
            for choice in ours
            if (self.config_dir / group / f"{choice}.yaml").is_file()
        ]


class UsersFirst(SearchPathPlugin):
    """Lets Hydra look into the user's folder before ours, so that a file of the user's replaces ours of that name."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the folder first, under the provider that `--config-dir` has in Hydra."""
        if self.folder is not None:
            search_path.prepend("command-line", f"file://{self.folder}", SearchPathQuery(provider="main"))


def prefer(folder: Path | None) -> None:
    """Let this folder's files count before ours; none for ours alone."""
    UsersFirst.folder = folder
    if UsersFirst not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UsersFirst)


def _long(flag: str) -> str | None:
    """The long name of a flag, which may be shortened, as argparse allows; None for an unknown one."""
    every = WITH_VALUE | WITHOUT
    if flag.startswith("--"):
        found = [long for long in every if long.startswith(flag)]
        return flag if flag in every else found[0] if found else None
    return next((long for long, short in every.items() if short == flag), None)


def _unknown_flag(word: str, rest: list[str]) -> Problem:
    name, equals, value = word.lstrip("-").partition("=")
    known = [*WITH_VALUE, *WITHOUT, "-m"]
    if difflib.get_close_matches(word, known, n=1, cutoff=0.75):
        return Problem("command line", f"there is no flag {word}; {choices(word, known)}")
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest.pop(0)
    name = name.replace("-", "_")
    typed = name if name in keys.in_files() or name in keys.groups() else None
    meant = [f"{typed}={value}"] if typed else keys.meant(name, value)
    if not meant:
        return Problem("command line", f"there is no flag {word}; {choices(word, known)}")
    return Problem("command line", f"there is no flag {word}; values have no dashes: {' or '.join(meant)}")


def _spaces(words: list[str]) -> Iterator[Problem]:
    """Words that belong together, or need an equals sign."""
    if not any("=" not in word.strip("=") and not word.startswith("~") for word in words):
        return
    joined = re.sub(r"\0([=,])\0?|([=,])\0(?=[^=\0]+(?:\0|$))", r"\1\2", "\0".join(words)).split("\0")
    new = [word for word in joined if word not in words]
    for word in new:
        yield Problem("command line", f"a value has no spaces around its '=' and ',': write {word}")
    index = 0
    while index < len(joined):
        word, before = joined[index], joined[index - 1] if index else ""
        after = joined[index + 1] if index + 1 < len(joined) else ""
        index += 1
        if "=" in word or word.startswith("~"):
            continue
        key, colon, value = word.partition(":")
        is_key = key in keys.in_files() or key in keys.groups()
        if is_key and colon and (value or after):
            index += not value
            yield Problem("command line", f"a value comes behind '=': write {key}={value or after}")
        elif is_key and after and "=" not in after:
            index += 1
            yield Problem("command line", f"a value comes behind '=': write {word}={after}")
        elif "=" in before and "=" not in word and not is_key:
            values = [before.partition("=")[2], word]
            while index < len(joined) and "=" not in joined[index]:
                values.append(joined[index])
                index += 1
            together = f"-m {before.partition('=')[0]}={','.join(values)}"
            yield Problem("command line", f"{word!r} has no key; for a run of each value write {together}")


def _corrected(word: str, problems: list[Problem]) -> str:
    """An override as Hydra takes it: with values of the environment, and text of any language in quotes."""
    match = OVERRIDE.fullmatch(word)
    if match is None:
        return word
    sign, key, package, value = match[1], match[2], match[3] or "", match[4]
    is_group = key in keys.groups()
    value = re.sub(
        r"\$\{oc\.env:(\w+)(?:,([^{}]*))?\}",
        lambda found: _from_environment(found[0], os.environ.get(found[1], found[2]), is_text=is_group),
        value,
    )
    if is_group and "~" not in sign:
        problems += _of_a_group(key, value)
        value = re.sub(r"\.ya?ml(?=,|$)", "", value)
    if not value.isascii() and not set(value) & set("'\""):
        value = re.sub(r"[^,=()\[\]{}:\s]*[^\x00-\x7f,][^,=()\[\]{}:]*", _quoted, value)
    return f"{sign}{key}{package}={value}"


def _from_environment(typed: str, value: str | None, *, is_text: bool) -> str:
    """A number of the environment, which then names the cell; other texts stay as they are, for Hydra to look up."""
    return value if value is not None and (is_text or keys.NUMBER.fullmatch(value)) else typed


def _quoted(found: re.Match[str]) -> str:
    return found[0] if "$" in found[0] else f"'{found[0]}'"


def _of_a_group(group: str, value: str) -> Iterator[Problem]:
    inside = re.fullmatch(r"\[(.*)\]", value)
    if inside and group not in BESIDE_TRAINING:  # of which several are used at once
        problem = f"is one choice in each run, but is {value}; for a run of each write -m {group}={inside[1]}"
        yield Problem(group, problem)
    numbers = keys.of_group(group, value)
    if numbers:
        known = ", ".join(keys.groups()[group])
        meant = f"did you mean {' or '.join(numbers)}? known: {known}"
        yield Problem(group, f"is the name of a choice, but is {value}; {meant}")
    for choice in value.split(","):
        path = Path(choice)
        if path.suffix in (".yaml", ".yml") and len(path.parts) > 1:
            folder = path.parent.parent if path.parent.name == group else path.parent
            write = f"--config-dir {folder} {group}={path.stem}"
            wanted = f"write {write} for {folder / group / path.name}"
            yield Problem(group, f"is the name of a choice, but {choice} is a path; {wanted}")


def _config_dir(folder: str, *, is_primary: bool) -> Iterator[Problem]:
    """A user's folder of configurations must be there, with a folder for each group."""
    path, wanted = Path(folder), "a folder with <group>/<name>.yaml in it is wanted, such as my_conf/encoder/wide.yaml"
    if not path.is_dir():
        reason = "is a file" if path.exists() else "there is no such folder"
        near = difflib.get_close_matches(path.name, [one.name for one in _subfolders(path.parent)], n=1)
        offer = f"did you mean {path.parent / near[0]}? " if near and not path.exists() else ""
        yield Problem("--config-dir", f"{folder}: {reason}; {offer}{wanted}")
    elif not is_primary and not any(any(one.rglob("*.y*ml")) for one in _subfolders(path)):
        files = sorted(one.name for one in path.glob("*.y*ml"))
        group = path.name if path.name in keys.groups() else None
        offer = f"; take --config-dir {path.parent}" if group and files else ""
        holds = f"{files[0]} itself" if files else "no folder of a group"
        yield Problem("--config-dir", f"{folder} holds {holds}, but {wanted}{offer}")


def _subfolders(path: Path) -> list[Path]:
    return [one for one in path.iterdir() if one.is_dir()] if path.is_dir() else []
