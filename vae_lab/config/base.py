"""The two kinds of section: those with known keys, and those that describe a call of any class."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

WIDEST = 2**20
Width = Annotated[int, Field(ge=1, le=WIDEST)]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def _low_and_high(ends: Any) -> Any:
    numbers = isinstance(ends, list | tuple) and all(type(end) in (int, float) for end in ends)
    if not numbers or len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError("must be a lower and a higher number")
    return ends


Bounds = Annotated[Sequence[float], BeforeValidator(_low_and_high)]


def _channels_height_width(shape: Any) -> Any:
    numbers = isinstance(shape, list | tuple) and all(type(side) is int and side >= 1 for side in shape)
    if not numbers or len(shape) != 3 or math.prod(shape) > WIDEST:
        raise ValueError(
            "must be channels, height and width, such as [4, 7, 7]: numbers from 1, whose product is at most "
            f"{WIDEST:,}"
        )
    return shape


def _two_or_more(levels: Any) -> Any:
    numbers = isinstance(levels, list | tuple) and all(type(level) is int and level >= 2 for level in levels)
    if not numbers or not levels or math.prod(levels) > MOST_CODES:
        raise ValueError(
            f"must be a number of levels for each channel, 2 or more, with a product of at most {MOST_CODES:,}"
        )
    return levels


MOST_CODES = 2**18
Levels = Annotated[Sequence[int], BeforeValidator(_two_or_more)]
MapShape = Annotated[Sequence[int], BeforeValidator(_channels_height_width)]


def _share_of_training(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError("must be a share of the training, greater than 0 and at most 1: half of the epochs are 0.5")
    return share


Share = Annotated[float, AfterValidator(_share_of_training)]
Binarize = Literal["none", "threshold", "static", "dynamic"]
Background = Literal["white", "black"]
Target = Annotated[str, Field(alias="_target_")]


class Section(BaseModel):
    """A mapping with known keys. Types are strict: '3' is not 3."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True)


class Node(BaseModel):
    """An object built from its `_target_`: a class or function of vae_lab, torch or the user."""

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)

    target: Annotated[str, Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]


class PartialNode(Node):
    """A node that is called later, with arguments that a configuration cannot hold."""

    partial: Annotated[Literal[True], Field(alias="_partial_")]
