"""Turn a composed configuration into a valid `Config`, or report all its problems."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from vae_lab.config import names, signatures
from vae_lab.config.errors import ConfigError, Problem, choices
from vae_lab.config.schema import SECTIONS, STRATEGIES, Config, DataConfig, TrainerConfig, flatten
from vae_lab.config.versions import upgraded
from vae_lab.config.vocabulary import BLOCKS, DUPLICATES, AnyBlock, Block, ForeignBlock, Styled
from vae_lab.config.widths import scaled

MOST_BITS = 10_000
_INTERNAL = ("references",)
_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "string": "must be text",
    "bool": "must be true or false",
    "list": "must be a list",
    "tuple": "must be a list",
    "dict": "must be a group of keys",
    "model": "must be a group of keys",
}


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a configuration: keys, types, ranges, and rules across groups.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    duplicates = [*names.duplicates(), *DUPLICATES]
    if duplicates:
        raise ConfigError(*(Problem("vae_lab", sentence) for sentence in duplicates))
    huge = next((key for key, value in flatten(raw).items() if isinstance(value, int) and _is_huge(value)), None)
    if huge is not None:  # Python refuses to print it
        raise ConfigError(Problem(huge, f"is a number of more than {MOST_BITS:,} bits"))
    try:
        config = Config.model_validate(upgraded(raw))
    except ValidationError as error:
        raise ConfigError(*_problems(error.errors())) from None
    problems = list(_cross_group_problems(config))
    if problems:
        raise ConfigError(*problems)
    return _resolved(scaled(config))


def _resolved(config: Config) -> Config:
    """The configuration with σ, β and the subset's seed filled in where they follow from another key."""
    if "subset" in config.vary:
        config = config.model_copy(update={"data": config.data.model_copy(update={"subset_seed": config.seed})})
    if config.asked_sigma is not None:
        beta = 2 * config.asked_sigma**2 * config.latent_dim / config.pixels
        config = config.model_copy(update={"objective": config.objective.model_copy(update={"beta": beta})})
    sigma = getattr(config.likelihood, "sigma", None)
    likelihood = config.likelihood.model_copy(update={"sigma": config.sigma_of(sigma)})
    return config if sigma not in ("auto", "from_beta") else config.model_copy(update={"likelihood": likelihood})


def _is_huge(number: int) -> bool:
    return number.bit_length() > MOST_BITS


TAGS = {"ours", "folder", "foreign", *(name for family in names.FAMILIES for name in names.files(family))}
"""pydantic's union tags: parts of an error's location that do not occur in the YAML."""

_LIST = TypeAdapter(list[AnyBlock])


def parse_blocks(key: str, blocks: Iterable[Any]) -> list[AnyBlock]:
    """Check a list of blocks from YAML; `key` is its name in errors.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        return _LIST.validate_python(list(blocks))
    except ValidationError as error:
        prefix = ("blocks",)
        found = (_problem(details | {"loc": (*prefix, *details["loc"])}) for details in error.errors())
        raise ConfigError(
            *(Problem(key + problem.key.removeprefix("blocks"), problem.text) for problem in found)
        ) from None


_MEMBER = re.compile(r"(constrained-)?(int|float|str|bool)$|(literal|list|dict|tuple)\[|none$|function-")
"""The suffix that pydantic adds to a key of several types: the type that a value does not have."""


def _problems(errors: Iterable[ErrorDetails]) -> list[Problem]:
    """One problem per key; for a key of several types, with the rules of all types."""
    found: dict[str, list[Problem]] = {}
    for error in errors:
        *location, last = error["loc"]
        is_member = isinstance(last, str) and bool(location) and _MEMBER.match(last) is not None
        problem = _problem(error | {"loc": tuple(location)} if is_member else error)
        found.setdefault(f"{problem.key}{'' if is_member else len(found)}", []).append(problem)
    return [_either(group) for group in found.values()]


def _either(problems: list[Problem]) -> Problem:
    if len(problems) == 1:
        return problems[0]
    rules, value = zip(
        *(problem.text.removeprefix("must be ").rsplit(", but is ", 1) for problem in problems), strict=True
    )
    return Problem(problems[0].key, f"must be {' or '.join(rules)}, but is {value[0]}")


def _problem(error: ErrorDetails) -> Problem:
    location = [part for part, is_tag in _parts(error["loc"]) if not is_tag]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return Problem(key, "is missing")
    if kind == "extra_forbidden":
        known = [field for field in _fields(error["loc"][:-1]) if not field.startswith("_") and field not in _INTERNAL]
        return Problem(key, f"no such key (its value is {value!r}); {choices(str(location[-1]), known)}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        words = [str(word) for word in value] if isinstance(value, Mapping) else [str(value)]
        known = [*BLOCKS, "_target_"]
        odd_one = next((word for word in words if word not in known), "")
        return Problem(key, f"must name exactly one block, but is {value!r}; {choices(odd_one, known)}")
    if kind == "literal_error":
        return Problem(key, f"must be {context['expected']}, but is {value!r}")
    if kind == "value_error":
        return Problem(key, f"{context['error']}, but is {value!r}")
    bounds = {
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "too_short": "a list of {min_length} or more",
        "too_long": "a list of {max_length} or fewer",
    }
    if kind in bounds:
        limits = {name: str(limit).removesuffix(".0") for name, limit in context.items()}
        return Problem(key, f"must be {bounds[kind].format(**limits)}, but is {value!r}")
    if kind == "string_pattern_mismatch":
        return Problem(key, f"must be a dotted name such as torch.nn.ReLU, but is {value!r}")
    rule = next((text for name, text in _KINDS.items() if kind.startswith(name)), error["msg"])
    return Problem(key, f"{rule}, but is {value!r}{_several(key, value)}")


def _several(key: str, value: Any) -> str:
    """How to write the runs that a user meant by a range or a list in the place of a number."""
    span = re.fullmatch(r"\s*(\d+)\s*(?:-|:|\.\.+|–|to)\s*(\d+)\s*", value) if isinstance(value, str) else None
    if span and int(span[1]) < int(span[2]):
        first, last = int(span[1]), int(span[2])
        numbers = [*range(first, min(last, first + 4) + 1)]
        each = f"{key}={','.join(map(str, numbers))}{'' if numbers[-1] == last else ',…'}"
        return f"; for a run of each write -m {each} or -m '{key}=range({first},{last + 1})'"
    if isinstance(value, str) and re.fullmatch(r"[\w.+-]+(\s*[,;]\s*[\w.+-]+)+", value):
        value = re.split(r"\s*[,;]\s*", value)
    if isinstance(value, list) and len(value) > 1 and all(type(one) in (int, float, str) for one in value):
        return f"; for a run of each write -m {key}={','.join(map(str, value))}"
    return ""


def _parts(location: tuple[int | str, ...]) -> Iterable[tuple[int | str, bool]]:
    """The parts of a location, and whether each is a union tag of pydantic, which the YAML does not contain."""
    in_blocks = False
    for before, part in zip((None, *location), location, strict=False):
        is_tag = part in TAGS or (in_blocks and isinstance(before, int))
        yield part, is_tag
        in_blocks = in_blocks or part == "blocks"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` knows."""
    sections: dict[str, type[BaseModel]] = {
        **SECTIONS,
        **BLOCKS,
        **{name: schema for family in names.FAMILIES for name, schema in signatures.schemas(family).items()},
    }
    model = next((sections[str(part)] for part in reversed(location) if part in sections), Config)
    keys = [field.alias or name for name, field in model.model_fields.items()]
    if issubclass(model, Block):  # the word first, the keys of all blocks last
        keys.sort(key=lambda name: (name != model.word, name in Styled.model_fields))
    return keys


def _cross_group_problems(config: Config) -> Iterable[Problem]:
    data = config.data
    yield from _name_problems(config)
    yield from _likelihood_problems(config)
    yield from _subset_problems(config)
    yield from _density_problems(config)
    yield from _quantized_problems(config)
    yield from _perceptual_problems(config)
    if isinstance(data, DataConfig):
        if data.num_train + data.num_val > data.train_images:
            yield Problem(
                "data.num_train",
                f"num_train + num_val must be at most the {data.train_images:,} images in the training files, "
                f"but is {data.num_train:,} + {data.num_val:,}",
            )
        if data.num_test > data.test_images:
            yield Problem(
                "data.num_test",
                f"must be at most the {data.test_images:,} images in the test files, but is {data.num_test:,}",
            )
    extra = config.trainer.model_extra or {}
    yield from _process_problems(config, extra)
    for key in TrainerConfig.RESERVED:
        if key in extra:
            yield Problem(f"trainer.{key}", "is set by vae_lab, since the files of a run depend on it; remove it")
    yield from _length_problems(config, extra)
    for split in ("train", "val", "test"):
        if extra.get(f"limit_{split}_batches") == 0:
            other = "; data.num_val=0 does without validation" if split == "val" else ""
            yield Problem(f"trainer.limit_{split}_batches", f"must be greater than 0, but is 0{other}")


def _length_problems(config: Config, extra: Mapping[str, Any]) -> Iterable[Problem]:
    """The trainer's arguments from which the number of optimiser steps follows."""
    for key, special in (("max_steps", -1), ("accumulate_grad_batches", None)):
        value = extra.get(key, 1)
        if type(value) is not int or (value < 1 and value != special):
            also = ", or -1 for no limit" if special == -1 else ""
            yield Problem(f"trainer.{key}", f"must be a whole number of at least 1{also}, but is {value!r}")
    batches = math.ceil(config.data.num_train / config.data.batch_size)
    for key in ("limit_train_batches", "overfit_batches"):
        value = extra.get(key) or 1  # 0 is reported elsewhere, or means none
        if type(value) not in (int, float) or value < 0 or (type(value) is float and value > 1):
            rule = "a whole number of batches, or the fraction of them, 0 to 1"
            yield Problem(f"trainer.{key}", f"must be {rule}, but is {value!r}")
        elif type(value) is float and int(value * batches) < 1:
            yield Problem(f"trainer.{key}", f"must leave one batch or more, but is {value!r} of {batches}")


def _name_problems(config: Config) -> Iterable[Problem]:
    """Names in `vae_lab` that no section may have: those that do not exist, of another kind, or with a file in them."""
    for key, node in config.nodes().items():
        if isinstance(node, ForeignBlock):
            continue
        target = str(node.model_dump().get("_target_"))
        family = key.partition(".")[0]
        known = names.files(family) if family in names.FAMILIES else names.homes()
        if target.startswith("vae_lab.") and target.removeprefix("vae_lab.") not in known:
            offered = choices(target, [f"vae_lab.{one}" for one in known])
            kind = f"{family} {target}" if family in names.FAMILIES else target
            yield Problem(f"{key}._target_", f"this version of vae_lab has no {kind}; {offered}")


def not_binary(likelihood: str) -> Problem:
    """A likelihood for binary images on images that are not."""
    return Problem(
        "likelihood",
        f"{likelihood} is for binary images, but data.binarize is none; take data.binarize=dynamic, threshold or "
        "static, or likelihood=continuous_bernoulli or gaussian",
    )


def _likelihood_problems(config: Config) -> Iterable[Problem]:
    """The likelihood must suit the images and the objective."""
    likelihood, objective = config.likelihood, config.objective
    wanted = signatures.attribute("likelihood", likelihood.target, "data", "real")
    if wanted == "binary" and getattr(config.data, "binarize", None) == "none":
        yield not_binary(likelihood.target)
    only = signatures.attribute("objective", objective.target, "only_likelihood")
    if only is not None and likelihood.target != f"vae_lab.{only}":
        yield Problem(
            "likelihood",
            f"must be vae_lab.{only} for the objective {objective.target}, but is {likelihood.target}; "
            "take objective=elbo",
        )
    elif signatures.beta_sets_sigma(objective.target):
        if (getattr(objective, "beta", 0) or config.asked_sigma) and not config.latent_dim:
            yield Problem("latent", "must have a key `dim` or `shape`, the numbers of a code, which relate beta and σ")
        sigma = getattr(likelihood, "sigma", "auto")
        if sigma not in ("auto", "from_beta", config.implied_sigma):
            yield Problem(
                "likelihood.sigma",
                f"must be from_beta under objective=mse_kl, whose beta stands for σ = sqrt(β·D / (2·Z)), but is "
                f"{sigma!r}; set objective.sigma or objective.beta instead, or take objective=elbo",
            )
    elif getattr(likelihood, "sigma", None) == "from_beta":
        yield Problem(
            "likelihood.sigma",
            "is from_beta, which is for objective=mse_kl; take a number, such as 0.1, or learned",
        )


def _subset_problems(config: Config) -> Iterable[Problem]:
    """Where a seed chooses the training images, there must be some to choose from, and the test images must stay."""
    if "subset" not in config.vary:
        return
    if not isinstance(config.data, DataConfig):
        yield Problem("vary", "has subset, but the seed of this data set's draw changes its test images too")
    elif config.data.subset == "first":
        yield Problem("vary", "has subset, but data.subset is first; take data.subset=random or stratified")


def _density_problems(config: Config) -> Iterable[Problem]:
    """A posterior without a density has no KL divergence."""
    posterior, objective = config.posterior.target, config.objective.target
    has_density = signatures.attribute("posterior", posterior, "has_density", default=True)
    if not has_density and signatures.attribute("objective", objective, "needs_density", default=True):
        yield no_density(posterior, objective)


def no_density(posterior: str, objective: str) -> Problem:
    """A posterior without a density under an objective that needs one."""
    able = signatures.words("objective", "needs_density", lambda needed: not needed)
    others = " or ".join(f"objective={word}" for word in able)
    return Problem(
        "posterior",
        f"{posterior} has no density, which the objective {objective} needs; take posterior=diagonal"
        + (f", or {others}" if others else ""),
    )


def _quantized_problems(config: Config) -> Iterable[Problem]:
    """Posterior, prior and objective must all be for codes of a codebook, or none; a user's are seen later."""

    def declared(part: str, name: str, default: Any) -> Part:
        target = str(getattr(config, part).target)
        is_ours = target.startswith("vae_lab.")
        return target, signatures.attribute(part, target, name, default) if is_ours else None

    quantized = "is_quantized"
    yield from quantized_problems(
        declared("posterior", quantized, False),
        declared("prior", quantized, False),
        declared("objective", "penalty_unit", ""),
    )


Part = tuple[str, Any]
"""The name of a part, and an attribute of its class; None if it is not known."""


def quantized_problems(posterior: Part, prior: Part, objective: Part) -> Iterable[Problem]:
    """A quantised posterior needs a prior over its codes, and an objective that adds its penalty.

    Args:
        posterior: with `is_quantized`.
        prior: with `is_quantized`.
        objective: with `penalty_unit`.
    """
    if prior[1] and posterior[1] is False:
        problem = f"{prior[0]} is over the codes of a quantised posterior, but the posterior is {posterior[0]}"
        yield Problem("prior", f"{problem}; take prior=standard, or latent=vq, fsq or lfq")
    if posterior[1] and prior[1] is False:
        problem = f"must be over the codes of the quantised posterior {posterior[0]}, but is {prior[0]}"
        yield Problem("prior", f"{problem}; take prior=codes, or latent=map with posterior=diagonal")
    if posterior[1] and objective[1] == "":
        able = " or ".join(f"objective={word}" for word in signatures.words("objective", "penalty_unit"))
        problem = f"{objective[0]} cannot train the quantised posterior {posterior[0]}"
        yield Problem("objective", f"{problem}; take {able}, or latent=map with posterior=diagonal and prior=standard")


def _perceptual_problems(config: Config) -> Iterable[Problem]:
    """The classifier that ships knows Fashion-MNIST only."""
    if getattr(config.objective, "perceptual", 0) and not config.is_fashion_mnist:
        yield Problem(
            "objective.perceptual",
            "is for Fashion-MNIST, which its classifier was trained on, but data is other images; take "
            "data=fashion_mnist_3k or fashion_mnist, or objective.perceptual=0",
        )


def _process_problems(config: Config, extra: Mapping[str, Any]) -> Iterable[Problem]:
    """The rules for a run that several processes train."""
    devices, processes = config.trainer.devices, config.trainer.processes
    if processes == 1:
        return
    if config.trainer.is_shared and isinstance(devices, list) and config.trainer.accelerator == "cpu":
        yield Problem("trainer.devices", f"must be a number of processes on a CPU, but is {devices!r}")
    if not config.trainer.is_shared:
        strategy = extra.get("strategy", "auto")
        if "strategy" in extra:
            known = ", ".join(STRATEGIES)
            yield Problem("trainer.strategy", f"must be one of {known} for several processes, but is {strategy!r}")
        else:
            problem = (
                f"must be 1, or a list of one GPU, but is {devices!r}; trainer=ddp trains a run in several processes"
            )
            yield Problem("trainer.devices", problem)
    if processes > config.data.batch_size:
        problem = (
            f"must be at most the {config.data.batch_size} images of a batch (data.batch_size), of which each process "
            f"takes its part, but is {devices!r}"
        )
        yield Problem("trainer.devices", problem)
    if extra.get("num_nodes", 1) != 1:
        problem = f"must be 1, but is {extra['num_nodes']!r}: the processes of a run share one machine; leave it out"
        yield Problem("trainer.num_nodes", problem)
    if "use_distributed_sampler" in extra:
        yield Problem("trainer.use_distributed_sampler", "is set by vae_lab, which divides the batches; remove it")
    if extra.get("sync_batchnorm") and config.trainer.accelerator == "cpu":
        problem = "must be false on a CPU, where batch normalisation cannot be synchronised; take normalization: group"
        yield Problem("trainer.sync_batchnorm", problem)
