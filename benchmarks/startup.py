"""How long a user waits before anything happens: `import dsopt` and `dsopt --help`, each in fresh processes.

The peer is the bare interpreter, `python -c pass`, started in turn with them. `import_seconds` is taken inside the
process, around the import; the others are wall time of whole processes, medians over the runs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.harness import Row, interleave, paired_ratio, parser, progress, report

IMPORT = """
import json, sys, time
start = time.perf_counter()
import dsopt
seconds = time.perf_counter() - start
loaded = sorted({"torch", "tvm", "onnx", "onnxruntime"} & set(sys.modules))
print(json.dumps({"seconds": seconds, "loaded": loaded}))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    report("startup", measure(7 if options.quick else 31), as_json=options.json)


def measure(runs: int) -> list[Row]:
    """Start each command `runs` times, in turn."""
    progress(f"starting three commands {runs} times each")
    imports: list[dict[str, object]] = []
    seconds = interleave(
        {
            "import dsopt": lambda: imports.append(json.loads(_run("-c", IMPORT))),
            "dsopt --help": lambda: _run("-m", "dsopt", "--help"),
            "python -c pass": lambda: _run("-c", "pass"),
        },
        budget_seconds=0.0,
        least_rounds=runs,
    )
    bare = seconds.pop("python -c pass")
    rows: list[Row] = []
    for command, walls in seconds.items():
        ratio = paired_ratio([walls], [bare])
        rows.append(
            {
                "command": command,
                "runs": len(walls),
                "p50_seconds": statistics.median(walls),
                "bare_python_p50_seconds": statistics.median(bare),
                "ratio": ratio.median,
                "ratio_upper95": ratio.upper95,
            }
        )
    rows[0]["import_seconds"] = statistics.median(float(str(one["seconds"])) for one in imports)
    rows[0]["heavy_packages_loaded"] = imports[-1]["loaded"]
    return rows


def _run(*arguments: str) -> str:
    """Run this interpreter; raises CalledProcessError, with what it said on stderr printed, if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
