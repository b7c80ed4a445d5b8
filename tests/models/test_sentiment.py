"""Sentences become ids as documented, and the network learns what a few words mean."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from models.sentiment import LENGTH, PADDING, START, UNKNOWN, Sst2, drop_words, encode, load_sst2, spec, train


def write(folder: Path, sentences: int) -> None:
    rng = random.Random(0)
    for name in ("train.tsv", "dev.tsv"):
        lines = []
        for _ in range(sentences):
            label = rng.randrange(2)
            word = rng.choice([["bad", "dull"], ["Good", "moving"]][label])
            lines.append(f"{' '.join(rng.choices(['a', 'film', 'with', 'an', 'end'], k=5))} {word} .\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_words_get_ids_by_how_often_they_occur(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("the The film\t1\nthe film once\t0\n", encoding="utf-8")
    (tmp_path / "dev.tsv").write_text("the FILM new\t0\n", encoding="utf-8")
    data = load_sst2(tmp_path)
    assert data.y_train.tolist() == [1, 0]
    assert data.x_train[1].tolist() == [START, 3, 4, UNKNOWN] + [PADDING] * (LENGTH - 4)
    assert data.x_test[0, :4].tolist() == [START, 3, 4, UNKNOWN]


def test_a_long_sentence_is_cut() -> None:
    assert encode("so " * 100, {"so": 7}) == [START] + [7] * (LENGTH - 1)


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "dev.tsv").write_text("good\t1\nno label\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev\.tsv:2: a line must be"):
        load_sst2(tmp_path)


def test_only_words_are_made_unknown() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[START, 5, UNKNOWN, 9] + [PADDING] * 28]).repeat(100, 1)
    dropped = drop_words(ids, 0.5)
    changed = dropped != ids
    assert set(dropped[changed].tolist()) == {UNKNOWN}
    assert not changed[:, [0, 2]].any() and not changed[:, 4:].any()
    assert 60 < changed.sum() < 140  # of 200, half: nearly six standard deviations on either side


def test_training_repeats_and_learns_from_words(tmp_path: Path) -> None:
    write(tmp_path, 400)
    data = load_sst2(tmp_path)
    model, again = train(data, epochs=6), train(data, epochs=6)
    with torch.inference_mode():
        scores = model(data.x_test)
        assert torch.equal(scores, again(data.x_test))
    assert (scores.argmax(1) == data.y_test).float().mean() > 0.95


def test_padding_does_not_change_a_sentence() -> None:
    (ids,) = spec(
        train(Sst2(*[torch.ones(1, LENGTH, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)] * 2), epochs=1)
    ).args
    model = train(Sst2(ids, torch.tensor([0, 1]), ids, torch.tensor([0, 1])), epochs=1)
    with torch.inference_mode():
        short = model(ids)[1]
        model.places[LENGTH // 2 :] += 5.0
        changed = model(ids)
    torch.testing.assert_close(changed[1], short, rtol=1e-5, atol=1e-6)
    assert (changed[0] - model(ids)[0]).abs().max() < 1e-6
