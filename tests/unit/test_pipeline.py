"""No message is forwarded that lacks the stamp of any check."""

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from actors.policy import pipeline

ACCEPTOR = Path(__file__).parents[2] / "actors" / "acceptor"


def test_all_stamps_pass() -> None:
    """The positive control."""
    pipeline.require(pipeline.FORWARD)


@pytest.mark.parametrize(
    "stamps",
    [sum(chosen) for size in range(len(pipeline.STAGES)) for chosen in combinations(pipeline.STAGES, size)],
)
def test_any_missing_stamp_is_refused_and_named(stamps: int) -> None:
    """Every proper subset of the checks is too little, and the error says which are missing."""
    with pytest.raises(pipeline.NotAllowed) as caught:
        pipeline.require(stamps)
    names = pipeline.missing(stamps)
    assert names
    assert all(name in str(caught.value) for name in names)


def test_stages_are_distinct_bits() -> None:
    """One check can't stand in for another."""
    assert sum(pipeline.STAGES) == pipeline.FORWARD
    assert len({stage.bit_count() for stage in pipeline.STAGES}) == 1


def test_the_order_is_the_contract_s() -> None:
    """Size, envelope, principal, content, rate, authorisation, breaker."""
    assert pipeline.missing(0) == ("size", "envelope", "principal", "content", "rate", "authorisation", "circuit")


def forwards(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    """Every call of ``route.forward``, whatever holds the route, with the function that it stands in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "forward":
                    yield function, node


def requires(function: ast.FunctionDef) -> list[int]:
    """The lines of the function's own statements, under no condition, that require every stamp."""
    return [
        statement.lineno
        for statement in function.body
        if isinstance(statement, ast.Expr) and ast.unparse(statement) == "pipeline.require(item.stamps)"
    ]


def test_nothing_is_forwarded_before_every_stamp_is_required() -> None:
    """In the acceptor's source each call that forwards comes after an unconditional ``require`` of its function."""
    found = []
    for path in sorted(ACCEPTOR.rglob("*.py")):
        for function, call in forwards(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) == "self._pool.forward":
                continue  # inside of a route, behind the one that is looked at
            found.append(f"{path.stem}.{function.name}")
            assert any(line < call.lineno for line in requires(function)), f"{path}:{call.lineno}"
    assert found == ["dispatch._request", "dispatch._oneway"]


@pytest.mark.parametrize("stage", sorted(pipeline._NAMES.values()))
def test_each_stamp_is_given_by_the_module_that_checks(stage: str) -> None:
    """A stamp is set where its check is made, and nowhere else."""
    stage = stage.upper()
    places = [
        f"{path.stem}:{node.lineno}"
        for path in sorted(ACCEPTOR.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.AugAssign) and ast.unparse(node.value) == f"pipeline.{stage}")
        or (isinstance(node, ast.Call) and f"pipeline.{stage}" in map(ast.unparse, node.args))
    ]
    modules = {place.partition(":")[0] for place in places}
    assert modules == {{"AUTHORISATION": "authorising", "CONTENT": "screening"}.get(stage, "dispatch")}
