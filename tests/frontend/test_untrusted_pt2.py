"""Attacks on the reader of exported programs: each is shown to work on torch.export.load, and not on ours."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from dsopt.errors import DsoptError, ReadError
from dsopt.frontend.pt2 import read_pt2
from tests.frontend.archives import Bomb, Edit, altered, json_edit, text_edit, torch_bytes

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Victim(nn.Module):
    """Has a parameter, a constant, a varying size and nested inputs: one of each thing that an attacker may alter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.offset = torch.arange(3.0)

    def forward(self, x: Tensor, options: dict[str, Tensor]) -> dict[str, Tensor]:
        y = self.linear(x) + self.offset * options["gain"]
        return {"out": y, "twice": torch.cat([y, y])}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "m.pt2"
    shapes = {"x": {0: Dim("batch", min=2, max=64)}, "options": {"gain": None}}
    program = torch.export.export(Victim(), (torch.randn(5, 4), {"gain": torch.ones(3)}), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def run_as_torch_does(path: Path) -> None:
    """Load and run a file in the way of torch's own documentation; what it raises after the attack does not matter."""
    try:
        module = torch.export.load(path).module()
        module(torch.randn(5, 4), {"gain": torch.ones(3)})
    except Exception:
        pass


def refusal(path: Path) -> ReadError:
    with pytest.raises(ReadError) as caught:
        read_pt2(path)
    assert caught.value.code.startswith("DS014")
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    return caught.value


def read_and_run(path: Path) -> None:
    read_pt2(path).module()(torch.randn(5, 4), {"gain": torch.ones(3)})


def call(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def spec_with(node: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Replace the nesting of the outputs by one tree node around the two leaves."""
    leaf = {"type": None, "context": None, "children_spec": []}

    def change(document: dict[str, Any]) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = json.dumps([1, node | {"children_spec": [leaf, leaf]}])

    return change


def module_name(marker: Path) -> str:
    return f"evil_{marker.parent.name}"


def evil_module(marker: Path) -> str:
    """Write a module that acts when it is imported, as any module in the working folder may, and return its name."""
    name = module_name(marker)
    (marker.parent / f"{name}.py").write_text(
        f"import os, enum\nos.mkdir({str(marker)!r})\nclass E(enum.Enum):\n    a = 1\n"
    )
    return name


def pickled_weight(marker: Path) -> dict[str, Edit]:
    def change(document: dict[str, Any]) -> None:
        document["config"]["linear.bias"] |= {"use_pickle": True, "path_name": "weight_9"}

    return {WEIGHTS: json_edit(change), "data/weights/weight_9": torch_bytes(Bomb(marker))}


def custom_constant(kind: str) -> Callable[[Path], dict[str, Edit]]:
    def edits(marker: Path) -> dict[str, Edit]:
        def change(document: dict[str, Any]) -> None:
            document["config"]["thing"] = {
                "path_name": kind,
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }

        return {CONSTANTS: json_edit(change), f"data/constants/{kind}": pickle.dumps(Bomb(marker))}

    return edits


def guard(marker: Path) -> dict[str, Edit]:
    return {MODEL: json_edit(lambda document: document.update(guards_code=[call(marker)]))}


def placeholder_name(marker: Path) -> dict[str, Edit]:
    return {MODEL: text_edit(('"options_gain"', json.dumps(f"options_gain={call(marker)}")))}


def enum_key(marker: Path) -> dict[str, Edit]:
    key = {"__enum__": True, "fqn": f"{evil_module(marker)}:E", "name": "a"}
    return {MODEL: json_edit(spec_with({"type": "builtins.dict", "context": json.dumps([key, "b"])}))}


def default_factory(marker: Path) -> dict[str, Edit]:
    context = {"default_factory_module": evil_module(marker), "default_factory_name": "E", "dict_context": ["a", "b"]}
    return {MODEL: json_edit(spec_with({"type": "collections.defaultdict", "context": context}))}


def size(marker: Path) -> dict[str, Edit]:
    return {MODEL: text_edit(("Symbol('s", f"{call(marker)} or Symbol('s"))}


REFUSED: dict[str, Callable[[Path], dict[str, Edit]]] = {
    "a pickled weight": pickled_weight,
    "all weights in a pickle": lambda marker: {"data/weights/model.pt": torch_bytes({"linear.bias": Bomb(marker)})},
    "all constants in a pickle": lambda marker: {"data/constants/model.pt": torch_bytes({"offset": Bomb(marker)})},
    "an opaque object among the constants": custom_constant("opaque_obj_0"),
    "a symbolic size that is a call": size,
    "the name of an input": placeholder_name,
    "an enum among the keys of an output": enum_key,
}
IGNORED: dict[str, Callable[[Path], dict[str, Edit]]] = {
    "pickled example inputs": lambda marker: {"data/sample_inputs/model.pt": torch_bytes(Bomb(marker))},
    "a guard": guard,
    "the factory of a defaultdict": default_factory,
}


@pytest.mark.parametrize("attack", sorted(REFUSED | IGNORED))
def test_an_attack_runs_code_in_torch_and_none_here(
    attack: str, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "marker"
    path = altered(honest, tmp_path / "m.pt2", (REFUSED | IGNORED)[attack](marker))
    if attack in REFUSED:
        error = refusal(path)
        assert error.code in ("DS0145", "DS0147", "DS0148")
    else:
        read_and_run(path)
    assert not marker.exists(), "our reader ran code of the file"
    assert module_name(marker) not in sys.modules
    run_as_torch_does(path)
    assert marker.exists(), "the attack does not work, so the test shows nothing"


def test_a_script_object_is_refused_before_it_is_unpickled(honest: Path, tmp_path: Path) -> None:
    assert (
        refusal(altered(honest, tmp_path / "m.pt2", custom_constant("custom_obj_0")(tmp_path / "marker"))).code
        == "DS0148"
    )
    assert not (tmp_path / "marker").exists()


def test_a_file_of_the_victim_cannot_be_read_through_an_operator(honest: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<3f", 7.0, 8.0, 9.0))

    def change(document: dict[str, Any]) -> None:
        node = next(item for item in document["graph_module"]["graph"]["nodes"] if "mul" in item["target"])
        node["target"] = "torch.ops.aten.from_file.default"
        names = {"filename": {"as_string": str(secret)}, "shared": {"as_bool": False}, "size": {"as_int": 3}}
        node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in names.items()]

    path = altered(honest, tmp_path / "m.pt2", {MODEL: json_edit(change)})
    assert "from_file" in str(refusal(path))
    zeros = torch.zeros(2, 4), {"gain": torch.ones(3)}
    module = torch.export.load(path).module()
    leaked = module(*zeros)["out"] - module.linear.bias
    torch.testing.assert_close(leaked[0], torch.tensor([7.0, 8.0, 9.0]))


def test_the_old_layout_reads_weights_and_runs_no_pickle(honest: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(honest) as archive:
        document = archive.read(f"m/{MODEL}")
    victim = Victim()
    marker = tmp_path / "marker"
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", document)
        archive.writestr("serialized_state_dict.pt", torch_bytes(victim.state_dict()))
        archive.writestr("serialized_constants.pt", torch_bytes({"offset": victim.offset}))
        archive.writestr("serialized_example_inputs.pt", torch_bytes(Bomb(marker)))
    x, options = torch.randn(3, 4), {"gain": torch.ones(3)}
    torch.testing.assert_close(read_pt2(path).module()(x, options), victim(x, options))
    assert not marker.exists()
    run_as_torch_does(path)
    assert marker.exists()


# ---- refused operators, names and sizes: no gadget is known for each, and none is let through ----

TARGETS = [
    "torch.ops.aten.save.default",
    "torch.ops.aten._print.default",
    "torch.ops.higher_order.call_torchbind",
    "torch.ops.higher_order.run_const_graph",
    "torch.ops.higher_order.triton_kernel_wrapper_functional",
    "torch.ops.load_library",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "math.__loader__.load_module",
    "_operator.attrgetter",
    "_operator.methodcaller",
    "builtins.eval",
    "os.system",
    "#evil:op",
    "",
    "torch.ops.aten.relu",
    "torch.ops.aten.relu.default.__call__",
    "torch.ops.profiler._record_function_enter.default",
]


@pytest.mark.parametrize("target", TARGETS)
def test_only_arithmetic_may_be_called(target: str, honest: Path, tmp_path: Path) -> None:
    path = altered(honest, tmp_path / "m.pt2", {MODEL: text_edit(("torch.ops.aten.add.Tensor", target))})
    assert refusal(path).code in ("DS0145", "DS0149")


def test_an_unknown_operator_of_a_known_namespace_is_named(honest: Path, tmp_path: Path) -> None:
    path = altered(honest, tmp_path / "m.pt2", {MODEL: text_edit(("aten.add.Tensor", "aten.tomorrow.Tensor"))})
    error = refusal(path)
    assert error.code == "DS0149"
    assert error.what == "the program calls torch.ops.aten.tomorrow.Tensor, which this torch does not have"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "weight_0/../../x", "/etc/passwd", "weight_0\x00", "a" * 300, "..\\x", ""]
)
def test_a_weight_cannot_name_a_file_outside_of_the_archive(name: str, honest: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["config"]["linear.bias"]["path_name"] = name

    assert refusal(altered(honest, tmp_path / "m.pt2", {WEIGHTS: json_edit(change)})).code == "DS0145"


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("sizes", [{"as_int": 2**40}], "DS0147"),
        ("sizes", [{"as_int": 2**62}], "DS0147"),
        ("sizes", [{"as_int": -3}], "DS0147"),
        ("sizes", [{"as_int": 10**30}], "DS0144"),
        ("sizes", [{"as_int": 4}], "DS0147"),
        ("sizes", [{"as_int": 3}] * 2, "DS0147"),
        ("strides", [{"as_int": 2**31}], "DS0147"),
        ("strides", [{"as_int": -1}], "DS0147"),
        ("storage_offset", {"as_int": 1}, "DS0147"),
        ("storage_offset", {"as_expr": {"expr_str": "Symbol('s0')", "hint": None}}, "DS0147"),
        ("dtype", 8, "DS0147"),
        ("dtype", 99, "DS0144"),
        ("dtype", "7", "DS0144"),
        ("layout", 1, "DS0147"),
        ("sizes", [], "DS0147"),
        ("sizes", 3, "DS0144"),
        ("sizes", None, "DS0144"),
    ],
)
def test_a_weight_that_does_not_fit_its_bytes_is_refused(
    field: str, value: object, code: str, honest: Path, tmp_path: Path
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["config"]["linear.bias"]["tensor_meta"][field] = value

    assert refusal(altered(honest, tmp_path / "m.pt2", {WEIGHTS: json_edit(change)})).code == code


def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(honest: Path, tmp_path: Path) -> None:
    huge = torch.empty(1).expand(2**40)
    path = altered(honest, tmp_path / "m.pt2", {"data/weights/model.pt": torch_bytes({"linear.bias": huge})})
    assert refusal(path).code in ("DS0147", "DS0148")


def test_weights_in_a_plain_pickle_are_read(honest: Path, tmp_path: Path) -> None:
    victim = Victim()
    path = altered(honest, tmp_path / "m.pt2", {"data/weights/model.pt": torch_bytes(victim.state_dict())})
    x, options = torch.randn(3, 4), {"gain": torch.ones(3)}
    torch.testing.assert_close(read_pt2(path).module()(x, options), victim(x, options))


# ---- damaged and oversized files ----


def test_a_decompression_bomb_is_not_unpacked(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/models/model.json", b" " * 200_000_000)
    assert path.stat().st_size < 300_000
    assert "decompression bomb" in str(refusal(path))


@pytest.mark.parametrize("member", ["../evil", "/etc/evil", "m/../../evil", "C:evil", "m\\..\\evil"])
def test_a_member_that_leaves_the_archive_is_refused(member: str, honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(honest.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(member), b"x")
    assert refusal(path).code == "DS0142"


def test_a_member_that_is_there_twice_is_refused(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(honest.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"m/{MODEL}", b"{}")
    assert "two members" in refusal(path).what


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_said_to_be_truncated(share: float, honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    data = honest.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    error = refusal(path)
    assert error.code == "DS0141"
    assert "truncated" in error.what


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.pt2").code == "DS0140"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", "", "{", "\ud800", '{"graph_module": {}}']
)
def test_json_that_is_none_is_refused(text: str, honest: Path, tmp_path: Path) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert refusal(altered(honest, tmp_path / "m.pt2", {MODEL: data})).code in ("DS0144", "DS0146")


def test_an_argument_nested_without_end_is_refused(honest: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        argument: dict[str, Any] = {"as_none": True}
        for _ in range(200):
            argument = {"as_string_to_argument": {"a": argument}}
        document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument

    assert "deep" in refusal(altered(honest, tmp_path / "m.pt2", {MODEL: json_edit(change)})).what


def test_another_version_of_the_schema_is_named(honest: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["schema_version"]["major"] = 9

    error = refusal(altered(honest, tmp_path / "m.pt2", {MODEL: json_edit(change)}))
    assert error.code == "DS0146"
    assert "version 9" in error.what


def test_an_archive_without_a_weight_names_it(honest: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        del document["config"]["linear.bias"]

    assert "'linear.bias'" in refusal(altered(honest, tmp_path / "m.pt2", {WEIGHTS: json_edit(change)})).what


@pytest.mark.parametrize("change", ["no entries", "no signature", "another leaf"])
def test_nesting_that_does_not_fit_the_graph_is_refused(change: str, honest: Path, tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        entries = document["graph_module"]["module_call_graph"]
        if change == "no entries":
            entries.clear()
        elif change == "no signature":
            entries[0]["signature"] = None
        else:
            entries[0]["signature"]["out_spec"] = entries[0]["signature"]["in_spec"].replace(
                "builtins.dict", "builtins.x"
            )
            entries[0]["signature"]["in_spec"] = '[1, {"type": null, "context": null, "children_spec": []}]'

    assert refusal(altered(honest, tmp_path / "m.pt2", {MODEL: json_edit(edit)})).code in ("DS0144", "DS0145")


def test_control_characters_of_a_file_do_not_reach_the_terminal(honest: Path, tmp_path: Path) -> None:
    path = altered(
        honest, tmp_path / "m.pt2", {MODEL: text_edit(("torch.ops.aten.add.Tensor", "\\u001b]0;owned\\u0007"))}
    )
    assert "\x1b" not in str(refusal(path))


def test_control_characters_in_source_lines_are_dropped(honest: Path, tmp_path: Path) -> None:
    path = altered(honest, tmp_path / "m.pt2", {MODEL: text_edit(("in forward", "in \\u001b[31mforward"))})
    assert "\x1b" not in "".join(node.meta.get("stack_trace", "") for node in read_pt2(path).graph.nodes)


# ---- fuzzing: whatever is altered, the answer is a program or a sentence ----


def read_or_refuse(path: Path) -> None:
    try:
        program = read_pt2(path)
    except DsoptError as error:
        assert error.what
        assert "Traceback" not in str(error)
    else:
        assert isinstance(program, torch.export.ExportedProgram)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_are_noticed_or_harmless(honest: Path, tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    data = bytearray(honest.read_bytes())
    for share, bit in flips:
        data[int(share * len(data))] ^= 1 << bit
    path = tmp_path / "m.pt2"
    path.write_bytes(data)
    read_or_refuse(path)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value of a JSON document."""
    if path:
        yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["x", "linear", "s77", "p_linear_weight", "torch.ops.aten.relu.default", "Symbol('s1')", "9**9**9**9"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["as_int", "as_tensor", "name", "as_expr"]), st.integers(), max_size=2),
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_altered_json_gives_a_program_or_a_sentence(honest: Path, tmp_path: Path, data: st.DataObject) -> None:
    member = data.draw(st.sampled_from([MODEL, MODEL, MODEL, WEIGHTS, CONSTANTS]))

    def change(document: dict[str, Any]) -> None:
        spots = list(places(copy.deepcopy(document)))
        for spot in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=2)):
            parent: Any = document
            try:
                for key in spot[:-1]:
                    parent = parent[key]
                if data.draw(st.booleans()):
                    parent[spot[-1]] = data.draw(VALUES)
                else:
                    del parent[spot[-1]]
            except (KeyError, IndexError, TypeError):
                continue  # the first change took away the place of the second

    read_or_refuse(altered(honest, tmp_path / "m.pt2", {member: json_edit(change)}))
