"""Weights that are kept: the last ones, within the context, by all arguments."""

from __future__ import annotations

from infer.weights.kept import kept, weights_kept


def test_the_last_result_is_kept_within_the_context() -> None:
    calls = []

    @kept
    def load(name: str, *, half: bool = False) -> list[str]:
        calls.append((name, half))
        return [name]

    assert load("a") is not load("a")
    with weights_kept():
        first = load("a")
        assert load("a") is first and load("a", half=True) is not first
        # One at a time: the first is loaded anew.
        assert load("a") is not first
    assert load("a") is not load("a") and len(calls) == 7


def test_two_functions_do_not_displace_each_other() -> None:
    @kept
    def one(name: str) -> list[str]:
        return [name]

    @kept
    def two(name: str) -> list[str]:
        return [name]

    with weights_kept():
        first = one("a")
        assert two("a") is not first and one("a") is first


def test_a_load_that_fails_leaves_nothing() -> None:
    @kept
    def load(name: str) -> str:
        raise ValueError(name)

    with weights_kept():
        for _ in range(2):
            try:
                load("a")
            except ValueError as error:
                assert str(error) == "a"
