import json
from pathlib import Path

from summary import read_rows


def test_results_without_rows_do_not_stop_the_table(tmp_path: Path) -> None:
    row = {"what": "a step", "against": "another", "verdict": "missed"}
    (tmp_path / "memory.json").write_text(json.dumps({"rows": [row, {"what": "no goal"}]}))
    (tmp_path / "kills.json").write_text(json.dumps({"kills": 36}))
    assert list(read_rows(tmp_path)) == [row]
