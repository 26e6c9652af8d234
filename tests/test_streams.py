"""No two draws share a stream, and no stream or fixed seed stands anywhere but in the registry."""

import ast
from itertools import combinations
from pathlib import Path

import pytest
import torch
import udml
from udml.data import load_data
from udml.experiments.kinds import KINDS, draw_kinds
from udml.models import authors_levels
from udml.training.randomness import evaluation_seed, mixed_sigma

import udml_kernels
from udml_kernels.streams import Purpose, Seed, Stream

PACKAGES = [Path(package.__file__).parent for package in (udml, udml_kernels)]
# The tools and the descriptions of the ops fill their inputs from torch's generator.
SOURCES = [
    path
    for folder in PACKAGES
    for path in sorted(folder.rglob("*.py"))
    if path.relative_to(folder).parts[0] not in ("tools", "testing")
]
DRAWS = ("normal", "uniform", "manual_seed", "default_rng", "Random", "RandomState", "evaluation_seed")


@pytest.mark.parametrize("registry", [Stream, Seed, Purpose])
def test_numbers_are_unique(registry):
    assert len({int(value) for value in registry.__members__.values()}) == len(registry.__members__)


def test_streams_are_the_low_byte_of_a_word():
    assert all(0 <= stream < 256 for stream in Stream)
    assert udml_kernels.reference.random.OP_IDS.items() <= {s.name.lower(): int(s) for s in Stream}.items()


def is_number(node: ast.AST) -> bool:
    values = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(isinstance(v, ast.Constant) and isinstance(v.value, int) for v in values)


def literals(tree: ast.AST) -> list[int]:
    """Lines where a stream or a seed is a number: a keyword, the argument of a draw, or a name given to a number."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [k.value for k in node.keywords if k.arg in ("stream", "seed")]
            # The first argument of normal and uniform is a shape.
            given += node.args[1:] if name in ("normal", "uniform") else node.args if name in DRAWS else []
            found += [node.lineno for value in given if is_number(value)]
        elif isinstance(node, ast.Assign):
            names = ast.unparse(ast.Tuple(node.targets, ast.Load())).lower()
            found += [node.lineno] if ("seed" in names or "stream" in names) and is_number(node.value) else []
    return found


def test_no_stream_or_seed_is_a_literal_elsewhere():
    assert len(SOURCES) > 100
    for path in SOURCES:
        lines = [] if path.name == "streams.py" else literals(ast.parse(path.read_text()))
        assert not lines, f"{path}: a stream or a seed is a number in lines {lines}; name it in udml_kernels.streams"


@pytest.mark.parametrize(
    "line",
    ["_STREAM = 7", "TEST_SEED, PART = 20260319, 0.4", "uniform(s, seed, stream=7)", "manual_seed(3)", "f(seed=1)"],
)
def test_the_search_sees_a_literal(line):
    assert literals(ast.parse(line)) == [1]


@pytest.mark.parametrize("draw", [0, 1, 5])
def test_the_test_digits_kinds_are_equally_likely(draw):
    """They were drawn from the stream that had chosen the test digits: 416, 360, 24, 0, 0 of 800."""
    index = load_data("digits").test.batch.index
    drawn = draw_kinds(torch.ones(len(index), 2), evaluation_seed(draw), index)
    kinds = *drawn.first.unbind(1), *drawn.second.unbind(1)
    counts = torch.stack([torch.bincount(kind, minlength=len(KINDS)) for kind in kinds])
    # 160 each, with a standard deviation of 11.3.
    assert (counts - 160).abs().max() < 4.5 * 11.3


def test_draws_of_one_seed_are_independent():
    """Everything that takes a step's seed and the samples' identities, on 4096 samples: correlations of 1/64."""
    ids, seed = torch.arange(4096), torch.tensor([int(Seed.COMMON)])
    u = {s: udml_kernels.uniform((4096,), seed, stream=s, sample_ids=ids) for s in Stream}
    for a, b in combinations(u, 2):
        assert torch.corrcoef(torch.stack((u[a], u[b])))[0, 1].abs() < 5 / 64, (a, b)
    levels = mixed_sigma(4096, 1, 1.0, seed, ids)[:, 0], authors_levels(4096, 1, seed, ids).level[:, 0]
    assert torch.equal(levels[0], (2 * u[Stream.LEVELS] - 1).clamp(min=0))
    assert (levels[1][u[Stream.AUTHORS_LEVELS] < 0.5] == 1).all()
    kinds = draw_kinds(levels[0].unsqueeze(1), seed, ids).first[:, 0]
    assert torch.equal(kinds, (u[Stream.KINDS] * len(KINDS)).long())
