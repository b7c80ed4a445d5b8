"""The digits network learns scikit-learn's digits in seconds, the same way each time."""

from __future__ import annotations

import pytest
import torch

from models.digits import load_digits, train

pytest.importorskip("sklearn")


def test_training_repeats_and_reaches_held_out_digits() -> None:
    data = load_digits()
    assert data.x_test.shape == (360, 1, 8, 8)
    assert torch.bincount(data.y_test).min() >= 30
    model, again = train(data, epochs=6), train(data, epochs=6)
    with torch.inference_mode():
        scores = model(data.x_test)
        assert torch.equal(scores, again(data.x_test))
    # A linear classifier reaches about 0.95 on this split.
    assert (scores.argmax(1) == data.y_test).float().mean() > 0.97


def test_no_digit_is_both_trained_on_and_held_out() -> None:
    data = load_digits()
    assert len(data.y_train) + len(data.y_test) == 1797
    assert not set(map(bytes, data.x_train.numpy())) & set(map(bytes, data.x_test.numpy()))
