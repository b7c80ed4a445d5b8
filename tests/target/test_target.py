from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import UsageError
from dsopt.target import CORES, CudaTarget, McuTarget, parse_target, target_names


@pytest.mark.parametrize("name", target_names())
def test_every_listed_target_is_read_back_as_itself(name: str) -> None:
    assert parse_target(name).name == name


@given(st.text(max_size=30))
def test_no_text_breaks_the_target_parser(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageError as problem:
        assert problem.fix
    else:
        assert parse_target(target.name) == target


def test_several_gpu_architectures_are_joined_with_a_plus() -> None:
    assert parse_target("cuda:sm_80+sm_90") == CudaTarget(("sm_80", "sm_90"))


@pytest.mark.parametrize("arch", ["sm_10", "90", "sm_", "sm_abc", "compute_90"])
def test_an_impossible_gpu_is_refused_when_constructed(arch: str) -> None:
    with pytest.raises(UsageError, match="unknown CUDA architecture"):
        CudaTarget((arch,))


@pytest.mark.parametrize("options", [{"core": "cortex-a53"}, {"ram_bytes": 0}, {"flash_bytes": 1 << 40}])
def test_an_impossible_chip_is_refused_when_constructed(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        McuTarget(**options)  # type: ignore[arg-type]


def test_every_core_says_where_it_can_be_emulated() -> None:
    assert all(core.simulators or core.note == "compiled and assembled only" for core in CORES.values())
