"""Published weights are read by name into the folded networks; a file that does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.trained import KWS_SCALE, KWS_ZERO_POINT, ic_samples, kws_samples, trained_ic, trained_kws

# Names and shapes as they stand in the published files.
KWS_ARRAYS = {
    "features.1.weight": (64, 1, 10, 4),
    **{f"features.{index}.weight": (64, 1, 3, 3) for index in (3, 7, 11, 15)},
    **{f"features.{index}.weight": (64, 64, 1, 1) for index in (5, 9, 13, 17)},
    **{f"features.{index}.bias": (64,) for index in range(1, 18, 2)},
    "classifier.weight": (12, 64),
    "classifier.bias": (12,),
}
IC_ARRAYS = {
    "stem.weight": (16, 3, 3, 3),
    "stem.bias": (16,),
    "blocks.0.conv1.1.weight": (16, 16, 3, 3),
    "blocks.0.conv1.1.bias": (16,),
    "blocks.0.conv2.weight": (16, 16, 3, 3),
    "blocks.0.conv2.bias": (16,),
    "blocks.1.conv1.1.weight": (32, 16, 3, 3),
    "blocks.1.conv1.1.bias": (32,),
    "blocks.1.conv2.weight": (32, 32, 3, 3),
    "blocks.1.conv2.bias": (32,),
    "blocks.1.shortcut.weight": (32, 16, 1, 1),
    "blocks.1.shortcut.bias": (32,),
    "blocks.2.conv1.1.weight": (64, 32, 3, 3),
    "blocks.2.conv1.1.bias": (64,),
    "blocks.2.conv2.weight": (64, 64, 3, 3),
    "blocks.2.conv2.bias": (64,),
    "blocks.2.shortcut.weight": (64, 32, 1, 1),
    "blocks.2.shortcut.bias": (64,),
    "classifier.weight": (10, 64),
    "classifier.bias": (10,),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return arrays


def test_keyword_weights_go_to_the_layer_of_their_place(tmp_path: Path) -> None:
    arrays = write(tmp_path / "models" / "kws_ds_cnn.npz", KWS_ARRAYS)
    model = trained_kws(tmp_path).model
    state = model.state_dict()
    assert np.array_equal(state["stem.0.conv.weight"], arrays["features.1.weight"])
    assert np.array_equal(state["blocks.0.0.0.conv.bias"], arrays["features.3.bias"])
    assert np.array_equal(state["blocks.3.1.0.conv.weight"], arrays["features.17.weight"])
    assert np.array_equal(state["classifier.bias"], arrays["classifier.bias"])


def test_image_weights_go_to_the_layer_of_their_place(tmp_path: Path) -> None:
    arrays = write(tmp_path / "models" / "ic_resnet8.npz", IC_ARRAYS)
    state = trained_ic(tmp_path).model.state_dict()
    assert np.array_equal(state["blocks.1.conv1.conv.weight"], arrays["blocks.1.conv1.1.weight"])
    assert np.array_equal(state["blocks.2.shortcut.conv.bias"], arrays["blocks.2.shortcut.bias"])
    assert np.array_equal(state["stem.0.conv.bias"], arrays["stem.bias"])


def test_a_file_with_other_layers_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "models" / "kws_ds_cnn.npz", {**KWS_ARRAYS, "features.19.weight": (64, 64, 1, 1)})
    with pytest.raises(ValueError, match="holds 21 arrays and the model takes 20"):
        trained_kws(tmp_path)


def test_samples_are_brought_back_to_features_and_pixels(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    features = np.arange(-128, 128, dtype=np.int8)[: 49 * 5].repeat(2).reshape(1, 49, 10)
    np.savez(tmp_path / "data" / "mlperf_tiny_kws01.npz", x=features, y=np.array([3]), name=np.array(["a"]))
    pixels = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(1, 32, 32, 3)
    np.savez(tmp_path / "data" / "cifar10_test_846.npz", x=pixels, y=np.array([7], np.uint8))
    x, y = kws_samples(tmp_path)
    assert x.shape == (1, 1, 49, 10)
    assert y.tolist() == [3]
    quantized = torch.round(x / KWS_SCALE) + KWS_ZERO_POINT
    assert np.array_equal(quantized.numpy().astype(np.int8)[0], features)
    x, y = ic_samples(tmp_path)
    assert y.tolist() == [7]
    assert x[0, :, 2, 5].tolist() == pixels[0, 2, 5].tolist()
