import csv
import json
from pathlib import Path

import pytest
import torch

from debugkit import UsageError
from debugkit.checkpoints.layer_table import LayerTable, read_layers


def table(folder: Path) -> LayerTable:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(128, 64), "zero.weight": torch.zeros(64, 64), "a.bias": torch.zeros(128)}
    torch.save(state, folder / "model.pt")
    return read_layers(folder / "model.pt")


def test_a_row_per_layer_with_gaps_where_nothing_is_measured(tmp_path: Path) -> None:
    first, second = table(tmp_path).rows
    assert (first["layer"], first["shape"], first["eigenvalues"]) == ("a.weight", "128x64", 64)
    assert first["frobenius_norm"] == pytest.approx((128 * 64) ** 0.5, rel=0.05)
    assert second["zero"]
    assert second["alpha"] is None


def test_a_data_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frame = table(tmp_path).to_pandas()
    assert list(frame["layer"]) == ["a.weight", "zero.weight"]
    assert frame["alpha"].notna().tolist() == [True, False]


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    found = table(tmp_path)
    found.write(tmp_path / "t.csv")
    found.write(tmp_path / "t.json")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row["layer"] for row in found.rows]
    assert json.loads((tmp_path / "t.json").read_text()) == found.rows
    with pytest.raises(UsageError, match="must end in"):
        found.write(tmp_path / "t.xlsx")
