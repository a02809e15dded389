"""Convert configurations of earlier versions to today's form, and today's to the form of the first version.

Version 0.1 had one posterior, one prior and one likelihood, which its configurations do not name. Its objective was a
function. Its decoders, also those of a user, ended with their own sigmoid.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vae_lab.config import names, signatures
from vae_lab.config.identity import BESIDE_TRAINING, changes_results

if TYPE_CHECKING:
    from vae_lab.config.schema import Config

_BINARY = {"binarize": "none", "binarize_seed": 0}
LATER_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {"vae_lab.ImageData": _BINARY, "vae_lab.FolderData": _BINARY | {"background": "white"}},
    "objective": {
        "vae_lab.Elbo": {
            "schedule": "constant", "warm_up": None, "cycles": None, "free_bits": 0.0, "target_kl": None,
            "perceptual": 0.0,
        },
        "vae_lab.MseKl": {"sigma": None},
    },
}  # fmt: skip
"""Group → class → keys that the class got after its first version, with the values that keep the old behaviour."""


OFTEN_REPLACED = ("vae_lab.ImageData", "vae_lab.MseKl", "vae_lab.Elbo")
"""Classes of files in which users replace `_target_`; what these files hold beside it is left over then."""


def upgraded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a configuration of any version to this version's form; unknown keys are unchanged."""
    new = {key: _renamed(value) for key, value in raw.items()}
    if not new:
        return new
    objective = new.get("objective")
    if isinstance(objective, dict) and objective.get("_target_") == "vae_lab.MseKl":
        objective.pop("_partial_", None)
    for part, implied in _implied(new.get("decoder")).items():
        new.setdefault(part, implied)
    for group, classes in LATER_DEFAULTS.items():
        section = new.get(group)
        if not isinstance(section, dict):
            continue
        target = str(section.get("_target_"))
        if target in classes:
            new[group] = classes[target] | section
        elif not target.startswith("vae_lab."):
            # left over from the file whose class a user has replaced
            left_over = [item for name in OFTEN_REPLACED if name in classes for item in classes[name].items()]
            new[group] = {key: value for key, value in section.items() if (key, value) not in left_over}
    return new


def as_first_written(config: "Config") -> dict[str, Any]:
    """A configuration as version 0.1 would write it, where it could, so that checksums of earlier runs stay valid.

    It omits the defaults of later keys, and callbacks and loggers that change no result.
    """
    container = config.container()
    # Neither the choice of GPUs nor the variant of DDP changes results.
    container["trainer"]["devices"] = config.trainer.processes
    if config.trainer.is_shared:
        del container["trainer"]["strategy"]
    for group, classes in LATER_DEFAULTS.items():
        later = classes.get(container[group]["_target_"], {}).items()
        container[group] = {key: value for key, value in container[group].items() if (key, value) not in later}
    if config.objective.target == "vae_lab.MseKl":
        container["objective"]["_partial_"] = True
    for part, implied in _implied(container["decoder"]).items():
        schema = signatures.schemas(part)[implied["_target_"].removeprefix("vae_lab.")]
        whole = schema.model_validate(implied).model_dump(mode="json")
        if part == "likelihood":
            whole["sigma"] = config.sigma_of("auto")
        if container[part] == whole:
            del container[part]
    for group in BESIDE_TRAINING:
        nodes = container.pop(group) or {}
        changing = {name: node for name, node in nodes.items() if changes_results(node)}
        if changing:
            container[group] = changing
    for node in nodes_in(container):
        node["_target_"] = names.first(node["_target_"])
    return container


def _implied(decoder: Any) -> dict[str, dict[str, Any]]:
    """The parts that version 0.1 does not name."""
    is_ours = isinstance(decoder, Mapping) and decoder.get("_target_", "vae_lab.Decoder") == "vae_lab.Decoder"
    return {
        "posterior": {"_target_": "vae_lab.DiagonalPosterior"},
        "prior": {"_target_": "vae_lab.StandardPrior"},
        "likelihood": {"_target_": "vae_lab.GaussianLikelihood", "link": "sigmoid" if is_ours else "identity"},
    }


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        new = {key: _renamed(one) for key, one in value.items()}
        if isinstance(new.get("_target_"), str):
            new["_target_"] = names.current(new["_target_"])
        return new
    return [_renamed(one) for one in value] if isinstance(value, list) else value


def nodes_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield value
        for one in value.values():
            yield from nodes_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from nodes_in(one)
