"""A run records how its results were made."""

import json
import sys
import time

import pytest

from mask_former.engine.record import recorded


def test_each_start_of_a_run_adds_an_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--data", "my town"])
    with recorded(tmp_path):
        (entry,) = json.loads((tmp_path / "run.json").read_text())
        assert entry["seconds"] is None, "as it stays if the run is killed"
        time.sleep(0.2)
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path):
        raise KeyboardInterrupt
    first, second = json.loads((tmp_path / "run.json").read_text())
    assert first["command"] == second["command"] == "train_net.py --data 'my town'"
    assert 0.2 <= first["seconds"] < 60
    assert second["seconds"] < 0.2
    assert "threads" in first["hardware"]
    assert first["started"] <= second["started"]


def test_a_damaged_record_is_started_anew(tmp_path):
    (tmp_path / "run.json").write_text("[{")
    with recorded(tmp_path):
        pass
    assert len(json.loads((tmp_path / "run.json").read_text())) == 1
