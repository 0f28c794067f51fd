"""No shipped recipe alarms the doctor, whole or at any of its sizes."""

from pathlib import Path

import pytest

from limbeck import doctor
from limbeck.recipe_file import read_whole

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/*.yaml")) + sorted(ROOT.glob("recipes/deepseek_r1/*.yaml"))
SIZES = [(path, size) for path in RECIPES for size in ("", *read_whole(path)[0].get("sizes", ()))]


@pytest.mark.parametrize(
    ("path", "size"), SIZES, ids=lambda value: str(getattr(value, "stem", value))
)
def test_no_false_alarm_on_what_is_shipped(
    path: Path, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = doctor.examine(str(path), size=size, run=tmp_path)
    assert [finding for finding in found if finding.ok is False] == []
