"""The demo trains, compiles for both targets, and reports what the emulated core did with held-out digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.demo import main, show

REPORT: dict[str, Any] = {
    "schema": 1,
    "samples": 40,
    "parameters": 9978,
    "rows": [
        {"runs_on": "eager torch", "accuracy_ratio": 0.975, "same_class_as_eager": 40, "relative_error": 0.0},
        {
            "runs_on": "mcu:cortex-m4",
            "accuracy_ratio": 0.95,
            "same_class_as_eager": 39,
            "relative_error": 1.25e-7,
            "ram_bytes": 16384,
            "flash_bytes": 51200,
            "stack_bytes": 412,
            "instructions": 1234567,
            "folder": "build/demo/mcu-cortex-m4",
        },
    ],
}


def test_the_table_is_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT)
    assert capsys.readouterr().out.splitlines() == [
        "40 held-out digits",
        "                       eager torch             mcu:cortex-m4",
        "accuracy                     97.5%                     95.0%",
        "same class as eager       40 of 40                  39 of 40",
        "largest error              0.0e+00                   1.2e-07",
        "RAM, bytes                       -                    16,384",
        "flash, bytes                     -                    51,200",
        "of RAM: stack, bytes             -                       412",
        "instructions an image            -                 1,234,567",
        "code                             -  build/demo/mcu-cortex-m4",
    ]


@pytest.mark.parametrize("samples", ["0", "1001"])
def test_a_number_of_samples_that_cannot_be_held_out_is_refused(
    samples: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--samples", samples])
    assert stopped.value.code == 2
    assert "must be 1 to 1000" in capsys.readouterr().err


@pytest.mark.mcu
@pytest.mark.slow
def test_the_emulated_core_classifies_held_out_digits_as_eager_torch_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("ziglang")
    pytest.importorskip("unicorn")
    main(["--out", str(tmp_path / "demo"), "--samples", "40"])
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    eager, cpu, chip = report["rows"]
    assert eager["accuracy_ratio"] > 0.95
    for row in (cpu, chip):
        assert row["same_class_as_eager"] == 40
        assert row["relative_error"] < 1e-5
    weights = 4 * report["parameters"]
    assert weights < chip["flash_bytes"] < weights + 64 * 1024
    assert 0 < chip["stack_bytes"] < chip["ram_bytes"] < 64 * 1024
    # 1 x 16 x 9 x 64 + 16 x 32 x 9 x 64 + 512 x 10 multiply-adds, each at least one instruction
    assert chip["instructions"] > 309_248
    assert list(Path(chip["folder"]).glob("**/*.c"))
    assert "40 held-out digits" in capsys.readouterr().out
