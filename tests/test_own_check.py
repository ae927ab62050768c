"""The check of a user's data: planted faults are named by file with a remedy, odd but healthy sets pass."""

import pytest
from own_faults import PLANTED, Planted
from own_sets import SETS

from mask_former.data.check import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def checked(folder, capsys, *options: str) -> tuple[int, str]:
    status = main([str(folder), "--processes", "1", *options])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.base}: {planted.name}")
def test_a_planted_fault_is_named_with_file_and_remedy(planted: Planted, tmp_path, capsys):
    folder = tmp_path / planted.base
    SETS[planted.base](folder)
    planted.plant(folder)
    status, text = checked(folder, capsys)
    lines = [line for line in text.splitlines() if planted.where in line]
    assert any(planted.remedy in line for line in lines), text
    assert status == planted.stops, text
