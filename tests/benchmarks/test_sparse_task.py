"""The task of the benchmark of sparse attention: texts, embeddings, and what is made of them, on random inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.neighbors import NearestCentroid, NearestNeighbors

import dsopt
from benchmarks.sparse_attention import __main__ as benchmark
from benchmarks.sparse_attention import minilm, task


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "VOCABULARY", 1000)


def test_agreement_is_that_of_scikit_learn() -> None:
    torch.manual_seed(4)
    labels = torch.arange(60) % 5
    dense = F.normalize(torch.randn(5, 16)[labels] + torch.randn(60, 16), dim=1)
    sparse = F.normalize(dense + 0.1 * torch.randn(60, 16), dim=1)
    own, same, clear, *rows = task.judge(dense, sparse, [labels])
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(dense).kneighbors(sparse)[1][:, 0]
    assert own["agreement"] == pytest.approx(np.mean(index == np.arange(60)))
    nearest = [
        NearestNeighbors(n_neighbors=2, metric="cosine").fit(each).kneighbors(each)[1][:, 1] for each in (dense, sparse)
    ]
    assert same["agreement"] == pytest.approx(np.mean(nearest[0] == nearest[1]))
    assert same["agreement"] < 1
    distances = NearestNeighbors(n_neighbors=3, metric="cosine").fit(dense).kneighbors(dense)[0]
    is_clear = distances[:, 2] - distances[:, 1] > task.CLEAR
    assert clear["texts"] == is_clear.sum() < 60
    assert clear["agreement"] == pytest.approx(np.mean((nearest[0] == nearest[1])[is_clear]))
    cosines = (dense * dense[nearest[0]]).sum(1) - (dense * dense[nearest[1]]).sum(1)
    assert same["lost"] == pytest.approx(float(cosines.mean()), abs=1e-6)
    classes = [_left_out_centroids(each, labels) for each in (dense, sparse)]
    near = [labels.numpy()[each] for each in nearest]
    for row, (wanted, given) in zip(rows, (near, classes), strict=True):
        assert row["agreement"] == pytest.approx(np.mean(wanted == given))
        accuracies = [np.mean(each == labels.numpy()) for each in (wanted, given)]
        assert [row["dense_accuracy"], row["accuracy"]] == pytest.approx(accuracies)
        assert row["kept_low"] <= row["kept"] <= row["kept_high"]
        assert row["kept"] == pytest.approx(accuracies[1] / accuracies[0])
    assert same["cosine"] == pytest.approx(float(F.cosine_similarity(dense, sparse).mean()), rel=1e-6)


def _left_out_centroids(embedding: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    found = []
    for number in range(len(labels)):
        others = torch.arange(len(labels)) != number
        model = NearestCentroid().fit(embedding[others].numpy(), labels[others].numpy())
        means = F.normalize(
            torch.from_numpy(model.centroids_).float(), dim=1
        )  # the nearest direction, whatever its length
        found.append(int((means @ embedding[number]).argmax()))
    return np.array(found)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (983, 1000), (1, 3)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert task.wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_embeddings_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []

    def encoder(pieces: torch.Tensor) -> torch.Tensor:
        calls.append(len(pieces))
        return F.one_hot(pieces[:, 0], minilm.WIDTH).float()

    monkeypatch.setattr(task, "KEEP_EVERY", 1)
    pieces = torch.randint(0, minilm.WIDTH, (20, 32), generator=torch.Generator().manual_seed(0))
    whole = task.embeddings(pieces, [encoder], None)
    assert whole.argmax(2).tolist() == [pieces[:, 0].tolist()]
    assert calls == [8, 8, 4]
    file = tmp_path / "kept.npy"
    assert torch.equal(task.embeddings(pieces[:8], [encoder], file), whole[:, :8])
    calls.clear()
    assert torch.equal(task.embeddings(pieces, [encoder], file), whole)
    assert calls == [8, 4]
    assert torch.equal(task.embeddings(pieces, [encoder], file), whole)
    assert calls == [8, 4]


def test_methods_are_artifacts_of_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "LAYERS", 1)
    monkeypatch.setattr(task, "LENGTH", 128)
    pieces = torch.randint(200, 1000, (3, 128), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = minilm.MiniLm(128).eval()
    with task.encoders(dsopt.capture(net, (pieces[:1],)), pieces[2:], 1) as (found, shares):
        dense, *sparse = (found[method](pieces[:2]) for method in ("dense", "schedule", "pass", "taught"))
    with torch.inference_mode():
        torch.testing.assert_close(dense, net(pieces[:2]), rtol=0, atol=1e-5)
    assert all(0.1 < share < 0.2 for share in shares.values())
    assert shares["taught"] == shares["pass"]
    assert not torch.equal(sparse[1], sparse[2])
    for each in sparse:
        assert not torch.equal(each, dense)
        assert (each * dense).sum(1).min() > 0.8


def test_too_few_texts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.QUICK_TEXTS >= task.CALIBRATION + 2
    with pytest.raises(SystemExit):
        benchmark.main(["--measures", "task", "--texts", str(task.CALIBRATION + 1)])
    assert "must be at least 26" in capsys.readouterr().err


def test_pieces_that_calibrate_are_not_judged() -> None:
    texts = task.Texts(torch.arange(50)[:, None], torch.arange(50), torch.arange(50))
    judged, calibration = texts.held_out()
    assert len(calibration) == task.CALIBRATION
    assert sorted([*judged.labels.tolist(), *calibration[:, 0].tolist()]) == list(range(50))


def test_fewer_texts_are_a_part_of_more() -> None:
    texts = task.Texts(torch.arange(50)[:, None], torch.arange(50), -torch.arange(50))
    few, more = texts.first(10), texts.first(30)
    assert few.labels.tolist() == more.labels[:10].tolist() == more.pieces[:10, 0].tolist() == (-few.stretches).tolist()
    assert sorted(texts.first(50).labels.tolist()) == list(range(50))
    assert few.labels.tolist() != list(range(10))


def test_texts_are_cut_with_their_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A word is an id here: the pieces have what the files have."""
    monkeypatch.setattr(minilm, "encode", lambda text: [int(word) for word in text.split()])
    monkeypatch.setattr(task, "FIRST_WORDS", ("2000", "2900", "3696"))
    data = tmp_path / "data"
    (data / "sst2").mkdir(parents=True)
    drama = list(range(2000, 2000 + 510 + 3 * 480 + 5))
    (data / "tinyshakespeare.txt").write_text(" ".join(map(str, drama)))
    sentences = [" ".join(str(label * 10 + word % 10) for word in range(300)) + f"\t{label}" for label in (0, 1, 0)]
    for name, line in zip(("train", "dev", "test"), sentences, strict=True):
        (data / "sst2" / f"{name}.tsv").write_text(line + "\n")
    texts = task.read_texts(tmp_path)
    assert texts.pieces[:, 1].tolist() == [
        2000,
        2480,
        2960,
        3440,
        0,
    ]  # the second class has too little text for a piece
    assert texts.stretches.tolist() == [0, 15, 31, 46, 62]
    assert texts.labels.tolist() == [0, 0, 1, 2, 3]  # the middle of the last piece of drama is its 1,697th word, 3696
    assert set(texts.pieces[4, 1:-1].tolist()) == set(range(10))
    assert (texts.pieces[:, 0] == minilm.START).all()
    assert (texts.pieces[:, -1] == minilm.END).all()
