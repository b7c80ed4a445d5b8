"""The rows of the guard, of perplexity and of whole networks, on made-up texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.sparse_attention import guarded, minilm, networks, perplexity, taught


def test_guard_rows_say_what_was_left_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "VOCABULARY", 200)
    monkeypatch.setattr(guarded, "BOUNDS", (None, 1e-6))

    def load(length: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return minilm.MiniLm(length).eval()

    texts = torch.randint(0, 200, (3, 160), generator=torch.Generator().manual_seed(0))
    free, strict = guarded.guard_rows(texts[:1], texts[1:], load, tiles=(16,))
    assert free["heads_dense"] == 0
    assert free["share"] < 0.2
    assert 0.5 < free["cosine"] < 1 - 1e-6
    assert strict["heads_dense"] == 1  # nothing is within a bound of a millionth
    assert strict["share"] == 1
    assert strict["lowest_cosine"] == pytest.approx(1, abs=1e-5)


def test_perplexity_of_a_network_that_knows_nothing_is_the_number_of_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "QUICK", perplexity.Size(192, 16, 1, 2, 2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tinyshakespeare.txt").write_text("To be, or not to be. " * 2000)
    found = perplexity.rows(tmp_path, quick=True)
    assert [row["tile"] for row in found] == [16, 64]
    for row in found:
        assert 20 < row["dense"] < 130  # after two steps, not far from 96 characters
        assert row["change"] == pytest.approx(row["perplexity"] / row["dense"] - 1)
        assert 0 < row["share"] < 1


def test_characters_are_read_as_ids(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\n ~\xff")
    assert perplexity.characters(tmp_path / "text").tolist() == [0, 1, 95, 0]


def test_a_network_is_timed_with_and_without() -> None:
    row = networks.network_row("small", networks.Encoder(1, 32, 2), torch.arange(256)[None], 0.05)
    assert row["ratio"] > 0
    assert row["dense_seconds"] > 0
    assert 1e-6 < row["relative_l2"] < 0.5  # it left something out
    assert row["share"] <= 0.15


def test_distillation_moves_embeddings_towards_the_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "VOCABULARY", 50)
    monkeypatch.setattr(taught, "RATE", 3e-6)  # the random network is much closer to begin with than a trained one

    def load(length: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return minilm.MiniLm(length).eval()

    texts = torch.randint(0, 50, (14, 96), generator=torch.Generator().manual_seed(0))
    (row,) = taught.taught_rows(texts[:12], texts[12:], load)
    assert row["steps"] == 12
    assert 0 < 1 - row["cosine"] < 0.95 * (1 - row["cosine_before"])
