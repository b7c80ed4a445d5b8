"""Recurrent layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.backends.cpu.cases import Cases, floats, module

CASES = Cases()


class WithStates(nn.Module):
    """A recurrent layer that is given its first states."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor | None = None) -> Any:
        return self.layer(x, hidden if cell is None else (hidden, cell))


class Cells(nn.Module):
    """Three steps of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5, nonlinearity="relu")

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        hidden, cell, gru, rnn = h, h * 2, h, h
        for step in range(3):
            hidden, cell = self.lstm(x[:, step], (hidden, cell))
            gru, rnn = self.gru(x[:, step], gru), self.rnn(x[:, step], rnn)
        return hidden, cell, gru, rnn


SEQUENCE = floats("B", 6, 4)
for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _name, _options in (
        ("plain", {}),
        ("batch_first", {"batch_first": True}),
        ("bidirectional", {"batch_first": True, "bidirectional": True}),
        ("two_layers", {"num_layers": 2, "batch_first": True}),
        ("deep_bidirectional", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("no_bias", {"bias": False, "batch_first": True}),
    ):
        CASES.add(
            f"{_kind.__name__}_{_name}",
            module(partial(_kind, 4, 5, **_options)),
            SEQUENCE if _options else floats(6, "B", 4),
        )
CASES.add("RNN_relu", module(lambda: nn.RNN(4, 5, nonlinearity="relu", batch_first=True)), SEQUENCE)
CASES.add("LSTM_unbatched", module(lambda: nn.LSTM(4, 5)), floats(6, 4))
CASES.add(
    "LSTM_states",
    module(lambda: WithStates(nn.LSTM(4, 5, 2, batch_first=True))),
    SEQUENCE,
    floats(2, "B", 5),
    floats(2, "B", 5),
)
CASES.add(
    "GRU_states",
    module(lambda: WithStates(nn.GRU(4, 5, bidirectional=True, batch_first=True))),
    SEQUENCE,
    floats(2, "B", 5),
)
CASES.add("RNN_states", module(lambda: WithStates(nn.RNN(4, 5, batch_first=True))), SEQUENCE, floats(1, "B", 5))
CASES.add("cells", module(Cells), floats("B", 3, 4), floats("B", 5))
