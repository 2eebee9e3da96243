"""The hub source, through the real ``datasets`` library on local directories."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from peer.data import open_source
from swarm.errors import DataError, MissingExtraError
from tests.unit.test_data_sources import a_manifest, all_documents


def hub_data(folder: Path, more: str = "") -> str:
    return f'source = "hub"\ndataset = {json.dumps(str(folder))}\nsplit = "train"\n{more}'


def test_hub_reads_a_local_directory_of_json_lines(tmp_path: Path) -> None:
    for file in range(3):
        rows = [json.dumps({"text": f"file {file} row {row}"}) for row in range(20)]
        (tmp_path / f"part-{file}.jsonl").write_text("\n".join(rows))
    source = open_source(a_manifest(hub_data(tmp_path)).data)
    assert source.shard_count == 18  # three files in six stripes each
    documents = all_documents(source)
    assert documents == {f"{file}:{row}": f"file {file} row {row}" for file in range(3) for row in range(20)}
    assert [text for _, text in source.documents(7, "order")] == [f"file 1 row {row}" for row in (1, 7, 13, 19)]


def test_hub_reads_a_local_directory_of_many_parquet_files(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for file in range(20):
        bodies = [f"{file} {row}" for row in range(5)] + [None, ""]
        parquet.write_table(arrow.table({"body": bodies, "n": range(7)}), tmp_path / f"{file:02}.parquet")
    source = open_source(a_manifest(hub_data(tmp_path, 'field = "body"')).data)
    assert source.shard_count == 20  # the data set's own shards
    assert list(source.documents(13)) == [(f"13:{row}", f"13 {row}") for row in range(5)]
    assert len(all_documents(source)) == 100


def test_hub_errors_are_one_line_and_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.dataset: cannot open .*doesn't contain any data files"):
        open_source(a_manifest(hub_data(tmp_path)).data)
    (tmp_path / "rows.jsonl").write_text('{"text": 5}\n{"text": 6}\n')
    with pytest.raises(DataError, match=r"^data\.field: .* has no column 'body'; it has text$"):
        open_source(a_manifest(hub_data(tmp_path, 'field = "body"')).data)
    with pytest.raises(DataError, match=r"^data\.dataset: cannot open .*Bad split: nine") as caught:
        open_source(a_manifest(hub_data(tmp_path).replace("train", "nine")).data)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^data\.field: column 'text' of .* is not text$"):
        all_documents(open_source(a_manifest(hub_data(tmp_path)).data))
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' * 5)
    source = open_source(a_manifest(hub_data(tmp_path)).data)
    os.truncate(tmp_path / "rows.jsonl", 20)
    with pytest.raises(DataError, match=r"^data\.dataset: cannot read "):
        all_documents(source)


def test_hub_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'waggle\[hub\]'$"):
        open_source(a_manifest(hub_data(tmp_path)).data)
