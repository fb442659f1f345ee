"""All parts of the dense network; together they are everything that its artefact computes."""

from __future__ import annotations

from floors.categories import category_parts
from floors.dictionary import dictionary_parts
from floors.images import image_parts
from floors.part import Draw, Part
from floors.shape import Shape
from floors.tokens import token_parts
from floors.windows import windows


def parts_of(shape: Shape) -> list[Part]:
    """The parts with random weights and inputs, the same in every run."""
    draw = Draw(shape)
    return [
        *dictionary_parts(shape, draw),
        *category_parts(shape, draw),
        *(windows(shape, draw, shifted) for shifted in (False, True)),
        *token_parts(shape, draw),
        *image_parts(shape, draw),
    ]


def total_macs(parts: list[Part]) -> int:
    """Multiply-adds of a whole network."""
    return sum(part.count * part.macs for part in parts)
