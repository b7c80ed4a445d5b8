"""The benchmark of sparse attention counts, compares and judges as it says, on random inputs and without any asset."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import results_store
from benchmarks.sparse_attention import __main__ as benchmark
from benchmarks.sparse_attention import counted, fidelity, held, minilm, retrieval, rivals, speed
from benchmarks.sparse_attention.budget import keys_of, share_of
from benchmarks.sparse_attention.plot import write_charts
from dsopt.sparse_schedule import schedule, work


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    benchmark.main([str(argument) for argument in (*arguments, "--json")])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return rows


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "VOCABULARY", 1000)


def _random_net(length: int) -> minilm.MiniLm:
    torch.manual_seed(0)
    net = minilm.MiniLm(length).eval()
    torch.nn.init.normal_(net.places)
    return net


# --- the schedule and its work ---


@pytest.mark.parametrize("tile", counted.TILES)
def test_the_schedule_keeps_its_promises(tile: int) -> None:
    """By the formula, which the next test compares with the counter."""
    totals = {}
    for n in counted.LENGTHS:
        totals[n] = work(schedule(n, keys_of(n, tile, 64, 64)), n, n, 64, 64, tile)
    shares = {n: total / (n * n * 128) for n, total in totals.items()}
    assert 0.14 < shares[1024] <= 0.15
    assert shares[4096] <= 0.06
    assert shares[16384] <= 0.022
    found = counted.slope([{"n": n, "total": total, "tile": tile} for n, total in totals.items()])
    assert found["slope"] <= 1.15
    assert found["largest_growth"] <= 2.3
    assert keys_of(512, tile, 64, 64) < keys_of(1024, tile, 64, 64) * 9 / 10  # below 1,024 keys the share decides


def test_work_is_counted_by_running(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(counted, "QUICK_LENGTHS", (512, 1024))
    rows = _run(capsys, "--quick", "--measures", "work")
    assert [row["measure"] for row in rows] == ["work", "work", "slope"] * 2
    for row in (row for row in rows if row["measure"] == "work"):
        n, tile = row["n"], row["tile"]
        parts = sum(row[name] for name in ("pooling", "scoring", "sorting", "residual", "picks"))
        assert row["total"] == pytest.approx(parts)
        assert row["dense"] == n * n * 128
        assert row["share"] == pytest.approx(parts / row["dense"])
        assert row["share"] == pytest.approx(share_of(n, tile, 64, 64), rel=1e-3)
        assert parts == pytest.approx(work(schedule(n, row["keys"]), n, n, 64, 64, tile), rel=1e-3)


def test_the_slope_of_n_log_n_is_known() -> None:
    rows = [{"n": n, "total": n * math.log2(n), "tile": 16} for n in counted.LENGTHS]
    found = counted.slope(rows)
    assert found["slope"] == pytest.approx(1.109, abs=1e-3)
    assert found["largest_growth"] == pytest.approx(2.2)


# --- others that choose keys ---


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_with_all_keys_is_dense(name: str) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 2, 100, 8, dtype=torch.float64) for _ in range(3))
    found = rivals.attention(query, key, value, rivals.RIVALS[name][1], 100)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value))


def test_rivals_choose_as_they_are_named() -> None:
    """Brute force over queries and keys."""
    torch.manual_seed(2)
    query, key = (torch.randn(1, 1, 128, 4, dtype=torch.float64) for _ in range(2))
    q, k = query[0, 0], key[0, 0]
    pooled, bounds, nearest = (each(query, key)[0, 0] for each in (rivals.pooled_blocks, rivals.pages, rivals.window))
    for t in (0, 63, 64, 127):
        block = q[t // 64 * 64 : t // 64 * 64 + 64].mean(0)
        for s in (0, 15, 16, 127):
            torch.testing.assert_close(pooled[t, s], block @ k[s // 64 * 64 : s // 64 * 64 + 64].mean(0))
            page = k[s // 16 * 16 : s // 16 * 16 + 16]
            bound = sum(max(float(q[t, d] * page[:, d].min()), float(q[t, d] * page[:, d].max())) for d in range(4))
            assert float(bounds[t, s]) == pytest.approx(bound)
            assert bounds[t, s] >= (q[t] @ page.T).max() - 1e-12
    kept = nearest[64].topk(4 + 9).indices.sort().values
    assert kept.tolist() == [0, 1, 2, 3, *range(60, 69)]


def test_a_rival_attends_to_no_more_keys_than_it_may() -> None:
    torch.manual_seed(3)
    query, key = (torch.randn(1, 1, 64, 8) for _ in range(2))
    each = torch.eye(64)[None, None]
    for tile, score in rivals.RIVALS.values():
        found = rivals.attention(query, key, each, score, 10)
        assert ((found > 0).sum(-1) == 10).all(), tile


# --- fidelity ---


def test_fidelity_has_one_row_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "LAYERS", 2)
    ids = np.random.default_rng(0).integers(200, 1000, 2000).tolist()
    rows = fidelity.fidelity_rows(ids, 1, _random_net, lengths=(64, 128))
    keys = [(row["n"], row["tile"], row["budget"], row["method"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * 2 * (2 + len(rivals.RIVALS))
    for row in rows:
        assert 0 < row["cosine"] <= 1
        assert row["relative_l2"] <= row["worst"]
        assert row["share"] <= row["budget"]
    best = {row["method"]: row for row in rows if row["n"] == 128 and row["budget"] == 0.25}
    assert best["dsopt"]["relative_l2"] < best["random"]["relative_l2"]


def test_deviation_is_of_whole_layers() -> None:
    wanted = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])
    found = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]]]])
    sums = fidelity.Deviation.of(2)
    sums.add(0, found, wanted)
    sums.add(1, wanted, wanted)
    columns = sums.columns()
    assert columns["cosine"] == pytest.approx((0.5 + 1.0) / 2)  # one of two rows of the first layer is at a right angle
    assert columns["worst"] == pytest.approx(math.sqrt(32) / 5)
    assert columns["relative_l2"] == pytest.approx(columns["worst"] / 2)


def test_layers_are_those_that_the_network_attends_with() -> None:
    net = _random_net(32)
    pieces = torch.randint(200, 1000, (1, 32), generator=torch.Generator().manual_seed(0))
    layers = fidelity.layers_of(net, pieces)
    assert [tuple(each.shape) for each in layers[0]] == [(1, 12, 32, 32)] * 3
    assert len(layers) == minilm.LAYERS
    x = net.norm(net.words(pieces) + net.places[:32])
    expected = net.layers[0].query(x).unflatten(-1, (12, 32)).transpose(1, 2)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(layers[0][0], expected)


# --- retrieval ---


def test_a_query_of_its_own_finds_its_needle_and_a_shared_list_does_not() -> None:
    own = retrieval.found(1024, 1, retrieval.OWN, 2)
    mixed = retrieval.found(1024, 64, retrieval.MIXED, 2)
    assert own > 0.97
    assert mixed < 0.6
    assert mixed > keys_of(1024, 64, 64, 64) / 1024  # what chance finds
    assert retrieval.found(1024, 16, retrieval.SHARED, 2) > 0.9


# --- speed ---


def test_speed_names_the_best_peer_and_compares_with_it() -> None:
    rounds = {"dsopt": [[1.0, 2.0]], "torch": [[3.0, 6.0]], "onnxruntime": [[4.0, 8.0]]}
    row = speed.row(1024, 1, rounds)
    assert (row["peer"], row["seconds"], row["peer_seconds"]) == ("torch", 1.5, 4.5)
    assert row["ratio"] == pytest.approx(3.0)
    assert row["ratio_lower95"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("ratios", "first"),
    [((0.5, 1.0, 2.0), 256), ((1.1, 0.9, 2.0), 512), ((2.0, 2.0, 0.9), None), ((1.2, 1.2, 1.2), 128)],
)
def test_the_crossover_is_where_no_longer_one_is_slower(ratios: tuple[float, ...], first: int | None) -> None:
    rows = [{"n": n, "ratio": ratio, "threads": 2} for n, ratio in zip((128, 256, 512), ratios, strict=True)]
    assert speed.crossover(rows)["n"] == first


def test_both_dense_peers_compute_attention() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, speed.HEADS, 24, speed.HEAD), dtype=np.float32) for _ in range(3))
    logits = np.einsum("bhtd,bhsd->bhts", query.astype(np.float64), key) / math.sqrt(speed.HEAD)
    parts = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bhts,bhsd->bhtd", parts / parts.sum(-1, keepdims=True), value)
    by_torch = speed.torch_dense((query, key, value))().numpy()
    np.testing.assert_allclose(by_torch, expected, atol=1e-5)
    (by_onnx,) = speed.onnx_dense((query, key, value), 1)()
    np.testing.assert_allclose(
        by_onnx.reshape(1, 24, speed.HEADS, speed.HEAD).transpose(0, 2, 1, 3), expected, atol=1e-5
    )


def test_speed_has_a_row_for_each_length_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "build", lambda: {})
    monkeypatch.setattr(speed, "native", lambda arrays, threads, libraries: speed.torch_dense(arrays))
    monkeypatch.setattr(speed, "QUICK_LENGTHS", (64, 128))
    monkeypatch.setattr(speed, "OPENINGS", 1)
    monkeypatch.setattr(held, "held_rows", lambda lengths, seconds: [])
    monkeypatch.setattr(benchmark, "SECONDS", {True: 0.01, False: 0.01})
    rows = _run(capsys, "--quick", "--measures", "speed")
    assert [(row["measure"], row["threads"]) for row in rows] == [
        (measure, threads) for threads in (1, 2) for measure in ("speed", "speed", "crossover")
    ]
    assert all(row["target"] == "cpu" for row in rows)


def test_both_sides_are_held_to_avx2() -> None:
    try:
        speed.build()
    except ImportError as problem:
        pytest.skip(str(problem))
    (row,) = held.held_rows((64,), 0.01)
    assert (row["isa"], row["peer"], row["n"]) == ("AVX2", "torch", 64)


# --- the program ---


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ImportError("no module named so")

    monkeypatch.setattr(speed, "build", missing)
    benchmark.main(["--quick", "--measures", "fidelity,task,speed", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == []
    assert captured.err.splitlines() == [
        "fidelity: left out, it needs --assets DIR",
        "task: left out, it needs --assets DIR",
        "speed: left out, there is no native kernel here (no module named so)",
    ]


def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = _run(capsys, "--target", "cuda")
    assert row["result"] == "not measured"
    assert "no GPU" in row["why"]


def test_an_unknown_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--measures", "work,beauty"])
    assert "no measure 'beauty'" in capsys.readouterr().err


def test_what_is_done_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[bool] = []

    def measure(chosen: Any) -> list[dict[str, Any]]:
        calls.append(chosen.quick)
        return [{"measure": "work", "n": len(calls)}]

    monkeypatch.setattr(benchmark, "MEASURES", {"work": measure})
    arguments = ("--work", tmp_path / "work")
    first = _run(capsys, *arguments)
    assert _run(capsys, *arguments) == first == [{"measure": "work", "n": 1}]
    assert _run(capsys, *arguments, "--quick") == [{"measure": "work", "n": 2}]
    assert calls == [False, True]


def test_a_whole_run_is_kept_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(results_store, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(benchmark, "MEASURES", {"work": lambda chosen: [{"measure": "work", "n": 1}]})
    _run(capsys, "--quick", "--assets", tmp_path)
    assert not results_store.FOLDER.exists()  # a quick run is no claim
    _run(capsys, "--assets", tmp_path)
    assert _run(capsys, "--report") == [{"measure": "work", "n": 1}]


def test_charts_have_a_line_for_each_side(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"measure": "work", "n": n, "tile": tile, "total": n * 10.0 * tile, "dense": n * n * 128.0}
        for tile in (16, 64)
        for n in (1024, 2048)
    ]
    for threads in (1, 2):
        rows += [
            {
                "measure": "speed",
                "target": "cpu",
                "n": n,
                "threads": threads,
                "seconds": n * 1e-6,
                "peer_seconds": n * 2e-6,
            }
            for n in (128, 256, 512)
        ]
        rows.append({"measure": "crossover", "target": "cpu", "threads": threads, "n": None})
    rows.append({"measure": "speed", "target": "cuda", "result": "not measured"})
    written = write_charts(rows, tmp_path)
    assert [path.name for path in written] == ["work.svg", "time-cpu.svg"]
    for path, lines, points in zip(written, (3, 4), (2, 3), strict=True):
        drawing = ElementTree.parse(path).getroot()
        found = drawing.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(found) == lines
        assert all(len(line.attrib["points"].split()) == points for line in found)
    heights = [float(pair.split(",")[1]) for pair in found[0].attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # more keys take longer: further up
