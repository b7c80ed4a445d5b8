"""The command itself: help without heavy imports, unknown names answered with near ones, every failure a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dsopt.cli.group import COMMANDS, load_command
from tests.cli.conftest import Run

ROOT = Path(__file__).parent.parent.parent


def test_help_lists_every_command(run: Run) -> None:
    text = run("--help").stdout
    assert all(name in text for name in COMMANDS)
    assert "Exit codes: 0 done" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(run: Run, name: str) -> None:
    text = run(name, "--help").stdout
    assert text.startswith("Usage: ")
    assert "--json" in text
    assert load_command(name).get_short_help_str(200) == COMMANDS[name]


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from dsopt.cli import cli\n"
        "try: cli.main(['--help'], prog_name='dsopt')\n"
        "except SystemExit: pass\n"
        "heavy = [n for n in ('numpy', 'torch', 'onnxruntime', 'onnx', 'rich', 'tvm') if n in sys.modules]\n"
        "print(heavy, file=sys.stderr)"
    )
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - start)
        assert done.stderr.strip() == "[]"
    assert min(taken) < 1.0  # 0.06 s on a quiet machine; benchmarks.startup measures it


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == "dsopt 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compil"], "there is no command 'compil'. Did you mean compile"),
        (["frobnicate"], "there is no command 'frobnicate'. Known: compile, run"),
        (["compile"], "missing argument 'MODEL'"),
        (["compile", "m.pt2"], "missing option '--target'"),
        (["compile", "m.pt2", "--targets", "cpu"], "no such option"),
        (["bench", "a", "--threads", "x"], "'x' is not a valid integer"),
        (["run", "a", "--dim", "batch"], "--dim 'batch' does not fix a size"),
        (["run", "a", "--dim", "n=1", "--dim", "n=2"], "--dim gives n two sizes, 1 and 2"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message.lower() in result.stderr.lower()
    assert result.stdout == ""
    document = json.loads(run(*arguments, "--json", code=2).stdout)
    assert document["schema"] == 1
    assert document["error"]["code"].startswith("DS09")
    assert document["error"]["exit_code"] == 2


def test_nothing_to_do_shows_the_help(run: Run) -> None:
    assert "Commands:" in run(code=2).output


def test_an_unexpected_error_is_a_sentence_and_a_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import dsopt.cli.targets

    def fail(name: str) -> Any:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(dsopt.cli.targets, "_about", fail)
    result = run("targets", code=2)
    assert "DS0906: dsopt failed by a fault of its own: ZeroDivisionError: of all things" in result.stderr
    log = Path(result.stderr.partition("the full report is in ")[2].splitlines()[0])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()
    document = json.loads(run("targets", "--json", code=2).stdout)
    assert document["error"]["code"] == "DS0906"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left behind"),
        (ValueError("embedded null byte"), 2, "DS0901: a path holds a null character"),
        (ValueError("of another kind"), 2, "DS0906"),
        (MemoryError(), 2, "DS0907: there is not enough memory"),
        (ModuleNotFoundError("No module named 'tvm'", name="tvm"), 4, 'pip install "dsopt[compile]"'),
        (ModuleNotFoundError("No module named 'x'", name="x"), 2, "DS0906"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_end_has_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    import dsopt.cli.targets

    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(dsopt.cli.targets, "_about", fail)
    assert message in run("targets", code=code).stderr


# ---- in processes of their own ----


def _dsopt(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dsopt", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # fmt: skip


def test_a_reader_that_goes_away_is_no_error() -> None:
    with _dsopt("explain", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dsopt", "targets"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("dsopt: DS0908: the result cannot be written to standard output")


STOPPED_WHILE_WRITING = """
import os, signal, sys, time
from dsopt.artifact import writing

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore

def stop(descriptor):
    os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    time.sleep(10)

writing.os.fsync = stop
from dsopt.cli import main
main()
"""


@pytest.mark.parametrize(("name", "code", "output"), [("SIGINT", 130, "folder"), ("SIGTERM", 143, "one.dsopt")])
def test_a_signal_in_the_middle_leaves_nothing_half_written(tmp_path: Path, name: str, code: int, output: str) -> None:
    (tmp_path / "out").mkdir()
    arguments = ["compile", "tests.cli.models:tiny", "-t", "cpu", "-o", str(tmp_path / "out" / output)]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_WRITING, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "SIGNAL": name}, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "nothing half-written was left behind" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


STOPPED_TWICE = """
import os, signal, sys, time
import click
import dsopt.cli.failures
from dsopt.artifact import writing

number = getattr(signal, os.environ["SIGNAL"])
where = os.environ["AGAIN"]

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore

def stop(descriptor):
    os.kill(os.getpid(), number)
    time.sleep(10)

def again(function):
    def call(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        return function(*arguments, **options)
    return call

writing.os.fsync = stop
if where == "removing":
    writing.shutil.rmtree = again(writing.shutil.rmtree)
elif where == "saying":
    dsopt.cli.failures.click.echo = again(click.echo)
else:
    dsopt.cli.group.flush_quietly = again(dsopt.cli.group.flush_quietly)
from dsopt.cli import main
main()
"""


@pytest.mark.parametrize("where", ["removing", "saying", "leaving"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_changes_nothing(tmp_path: Path, name: str, code: int, where: str) -> None:
    arguments = ["compile", "tests.cli.models:tiny", "-t", "cpu", "-o", str(tmp_path / "folder")]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_TWICE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "SIGNAL": name, "AGAIN": where}, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("; nothing half-written was left behind")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


WITHOUT_COMPILER = """
import sys
for name in ("torch", "tvm", "onnx", "unicorn"):
    sys.modules[name] = None
from dsopt.cli import main
main()
"""


def test_without_the_compiler_artifacts_run_and_compiling_says_what_to_install(artifact: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_COMPILER, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    for command in ("run", "inspect"):
        assert run(command, str(artifact)).returncode == 0
    done = run("compile", "tests.cli.models:tiny", "-t", "cpu")
    assert done.returncode == 4, done.stderr
    assert 'pip install "dsopt[compile]"' in done.stderr
    assert run("doctor").returncode == run("targets").returncode == run("explain", "DS0801").returncode == 0
