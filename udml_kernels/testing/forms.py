"""The forms that an argument can have: a number, a tensor of one number, tensors of several shapes, None.

A form is a function of a call's index, so that the values of one form change from call to call.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from .opinfo import Row

Form = Callable[[int], Row]

# Samples, modalities, channels and classes of these calls.
B, M, C, K = 3, 2, 4, 6


def values(*shape: int, key: int = 0) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(key)
    return torch.rand(shape, generator=generator) + 0.25


def number(i: int) -> float:
    return 0.25 + i / 16


def number_tensor(i: int) -> Tensor:
    return torch.tensor(number(i), device="cpu")


def seed() -> Tensor:
    return torch.tensor([7])


def features() -> list[Tensor]:
    return [values(B, C, key=m) for m in range(M)]


def mask(i: int) -> Tensor:
    return torch.arange(B * M).reshape(B, M) % (i + 2) != 1


def forms(argument: str, *shapes: tuple[int, ...], numbers: bool = True, none: bool = False) -> dict[str, Form]:
    """The forms of one argument: a number, a tensor of one number on the CPU, tensors of each shape, None."""
    found: dict[str, Form] = {}
    if numbers:
        found["number"] = lambda i: {argument: number(i)}
        found["number tensor"] = lambda i: {argument: number_tensor(i)}
    for shape in shapes:
        found[str(shape)] = partial(_shaped, argument, shape)
    if none:
        found["None"] = lambda i: {argument: None}
    return {f"{argument} {name}": form for name, form in found.items()}


def _shaped(argument: str, shape: tuple[int, ...], i: int) -> Row:
    return {argument: values(*shape, key=i)}


def each_form(word: str, argument: str, choices: Iterable[str], others: Form) -> dict[str, Form]:
    """A form for each choice of an argument, beside other arguments."""

    def form(choice: str, i: int) -> Row:
        return {argument: choice, **others(i)}

    return {f"{word} {choice}": partial(form, choice) for choice in choices}


STREAM: dict[str, Form] = {
    "stream": lambda i: {"stream": i + 3},
    "sample_ids": lambda i: {"sample_ids": torch.arange(B) + i},
}
