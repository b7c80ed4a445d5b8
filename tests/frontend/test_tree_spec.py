from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from dsopt.errors import ReadError
from dsopt.frontend.tree_spec import plain_tree_spec

LEAF = {"type": None, "context": None, "children_spec": []}


def node(kind: object, context: object, *children: object) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": list(children)}])


@pytest.mark.parametrize(
    "value", [1, (1, 2), [1], {"a": 1, 2: (3, [4])}, (), {}, OrderedDict(b=1, a=2), ((1, 2), {"k": 3})]
)
def test_plain_containers_keep_their_type(value: Any) -> None:
    spec = pytree.tree_structure(value)
    assert pytree.treespec_loads(plain_tree_spec(pytree.treespec_dumps(spec), {})) == spec


@pytest.mark.parametrize(
    ("value", "plain"),
    [(deque([1, 2]), [0, 1]), (defaultdict(list, a=1), {"a": 0}), ([defaultdict(int, {3: (1,)})], [{3: (0,)}])],
)
def test_other_containers_of_python_become_plain_ones(value: Any, plain: Any) -> None:
    leaves, spec = pytree.tree_flatten(value)
    rebuilt = pytree.treespec_loads(plain_tree_spec(pytree.treespec_dumps(spec), {}))
    assert pytree.tree_unflatten(range(len(leaves)), rebuilt) == plain


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (node("collections.namedtuple", "any.Pair", LEAF, LEAF), {"any.Pair": ["a", "b"]}),
        (node("my.Dataclass", json.dumps([["a", "b"], ["was_none"]]), LEAF, LEAF), {}),
        (node("transformers.modeling_outputs.Output", json.dumps(["a", "b"]), LEAF, LEAF), {}),
    ],
)
def test_classes_become_dicts_of_their_fields(text: str, fields: dict[str, list[str]]) -> None:
    assert pytree.tree_unflatten([1, 2], pytree.treespec_loads(plain_tree_spec(text, fields))) == {"a": 1, "b": 2}


def deep(depth: int) -> str:
    child: Any = LEAF
    for _ in range(depth):
        child = {"type": "builtins.list", "context": "null", "children_spec": [child]}
    return json.dumps([1, child])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[2, {}]",
        "[1, null]",
        "[1, {}]",
        deep(100),
        "[" * 100_000,
        node(None, None, LEAF),
        node(None, "x"),
        node(5, "null"),
        node("builtins.dict", json.dumps(["a"]), LEAF, LEAF),
        node("builtins.dict", json.dumps(["a", "a"]), LEAF, LEAF),
        node("builtins.dict", json.dumps([{"__enum__": True, "fqn": "os:system", "name": "x"}]), LEAF),
        node("builtins.dict", json.dumps([["nested"]]), LEAF),
        node("builtins.dict", json.dumps(["\x1b[31m"]), LEAF),
        node("builtins.dict", "not json", LEAF),
        node("collections.namedtuple", "unknown.Pair", LEAF),
        node("any.Constant", "null"),
        node("any.Class", json.dumps({"a": 1}), LEAF),
    ],
)
def test_other_trees_are_refused(text: str) -> None:
    with pytest.raises(ReadError) as caught:
        plain_tree_spec(text, {})
    assert caught.value.code in ("DS0144", "DS0145")


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    )
)
def test_any_nesting_of_lists_and_dicts_survives(value: Any) -> None:
    spec = pytree.tree_structure(value)
    assert pytree.treespec_loads(plain_tree_spec(pytree.treespec_dumps(spec), {})) == spec
