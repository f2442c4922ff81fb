"""Whatever the files look like, each record is in one partition, once, in its place."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from trimodal.errors import DatasetError, MalformedBody
from trimodal.scoring import dataset
from trimodal.scoring.dataset import cut, find_files, read

FIELDS = ("chat", "amount")

VALUES = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
RECORDS = st.lists(st.dictionaries(st.sampled_from(["id", *FIELDS, "other"]), VALUES), min_size=1, max_size=30)
ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\r\n"])


def read_all(folder, names, rows):
    """Returns the records of all partitions by file, and the ids, after checks that hold for any input."""
    partitions = cut(folder, names, rows)
    values, ids = {name: [] for name in names}, {name: [] for name in names}
    for partition in partitions:
        part = read(folder, partition, FIELDS, "id")
        assert partition.first == len(values[partition.file])
        assert 1 <= len(part.values) == len(part.ids) == partition.records <= rows
        values[partition.file] += part.values
        ids[partition.file] += part.ids.to_pylist()
    assert [partition.name for partition in partitions] == sorted({partition.name for partition in partitions})
    assert cut(folder, names, rows) == partitions
    return values, ids


@given(records=RECORDS, ends=st.lists(ENDS, min_size=1), last=st.booleans(), rows=st.integers(1, 40))
def test_lines(tmp_path_factory, records, ends, last, rows):
    folder = tmp_path_factory.mktemp("lines")
    lines = [json.dumps(record) + ends[place % len(ends)] for place, record in enumerate(records)]
    text = "".join(lines) if last else "".join(lines).rstrip()
    (folder / "a.jsonl").write_bytes(text.encode())

    values, ids = read_all(folder, ["a.jsonl"], rows)

    assert values["a.jsonl"] == records
    named = [record.get("id") for record in records]
    assert [identity is None for identity in ids["a.jsonl"]] == [identity is None for identity in named]
    texts = [
        (identity, text) for identity, text in zip(named, ids["a.jsonl"], strict=True) if isinstance(identity, str)
    ]
    assert all(text == identity.encode(errors="replace").decode() for identity, text in texts)


@given(
    chats=st.lists(st.none() | st.text(st.characters(codec="utf-8")), min_size=1, max_size=60),
    group=st.integers(1, 70),
    rows=st.integers(1, 70),
    packed=st.booleans(),
)
def test_parquet(tmp_path_factory, chats, group, rows, packed):
    folder = tmp_path_factory.mktemp("parquet")
    table = pa.table({"id": pa.array(range(len(chats)), pa.int32()), "chat": pa.array(chats, pa.string()),
                      "unread": ["x"] * len(chats)})  # fmt: skip
    if packed:
        table = table.set_column(1, "chat", table["chat"].dictionary_encode())
    parquet.write_table(table, folder / "a.parquet", row_group_size=group)

    values, ids = read_all(folder, ["a.parquet"], rows)

    assert values["a.parquet"] == [{"id": place, "chat": chat} for place, chat in enumerate(chats)]
    assert ids["a.parquet"] == list(range(len(chats)))


def test_ids_keep_their_type_in_parquet_and_are_texts_in_lines(tmp_path):
    parquet.write_table(pa.table({"id": pa.array([1, None], pa.int32()), "chat": ["a", "b"]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"chat": ["a", "b"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"id": 7}\n{"id": NaN}\n')
    partitions = cut(tmp_path, ["a.parquet", "b.parquet", "c.jsonl"], 10)

    first, second, third = (read(tmp_path, partition, FIELDS, "id").ids for partition in partitions)

    assert (first.type, first.to_pylist()) == (pa.int32(), [1, None])
    assert (second.type, second.to_pylist()) == (pa.string(), [None, None])
    assert (third.type, third.to_pylist()) == (pa.string(), ["7", None])
    assert read(tmp_path, partitions[0], FIELDS, None).ids.to_pylist() == [None, None]


def test_a_file_without_any_of_the_fields_still_has_its_records(tmp_path):
    parquet.write_table(pa.table({"unread": [1, 2, 3]}), tmp_path / "a.parquet")
    (partition,) = cut(tmp_path, ["a.parquet"], 10)

    assert read(tmp_path, partition, FIELDS, "id").values == [{}, {}, {}]


def test_a_line_that_cannot_be_read_is_an_error_in_its_place(tmp_path):
    lines = [
        b'{"chat": "a"}',
        b"{broken",
        b"[1]",
        b'{"chat": "\xff"}',
        b"1" * 5000,
        "\u00a0".encode(),
        b'{"chat": "b"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (partition,) = cut(tmp_path, ["a.jsonl"], 10)

    values = read(tmp_path, partition, FIELDS, "id").values

    assert [isinstance(value, MalformedBody) for value in values] == [False, True, True, True, True, True, False]
    assert values[6] == {"chat": "b"}


def test_long_records_make_small_partitions(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_PARTITION_BYTES", 1000)
    records = [{"chat": "x" * size} for size in (10, 400, 400, 400, 3000, 10, 10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    unlike = [f"{place:0300d}" for place in range(10)]
    parquet.write_table(pa.table({"chat": unlike}), tmp_path / "b.parquet", compression="none")

    partitions = cut(tmp_path, ["a.jsonl", "b.parquet"], 100)

    assert [partition.records for partition in partitions if partition.file == "a.jsonl"] == [3, 1, 1, 2]
    assert {partition.records for partition in partitions if partition.file == "b.parquet"} <= {1, 2, 3}
    values, _ = read_all(tmp_path, ["a.jsonl", "b.parquet"], 100)
    assert values == {"a.jsonl": records, "b.parquet": [{"chat": text} for text in unlike]}


def test_the_files_of_a_folder(tmp_path):
    for name in ("b.jsonl", "a/c.PARQUET", "a/b.ndjson", "_SUCCESS", ".hidden.parquet", "_temporary/x.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert find_files(tmp_path) == (tmp_path, ["a/b.ndjson", "a/c.PARQUET", "b.jsonl"])
    assert find_files(tmp_path / "b.jsonl") == (tmp_path, ["b.jsonl"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, b"", "holds no file"),
        ("a.csv", b"1,2", "a.csv"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.json", b' \n[\n{"chat": "a"}]', "one JSON object a line"),
        ("a.parquet", b"PAR1 torn", "a.parquet cannot be read"),
        ("a.parquet", b"", "a.parquet cannot be read"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, name, content, words):
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        cut(*find_files(tmp_path), 10)


def test_an_input_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        find_files(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_changes_meanwhile(tmp_path, name):
    def write(records):
        if name.endswith("jsonl"):
            (tmp_path / name).write_text('{"chat": "a"}\n' * records)
        else:
            parquet.write_table(pa.table({"chat": ["a"] * records}), tmp_path / name)

    write(9)
    last = cut(tmp_path, [name], 4)[-1]
    write(2)
    with pytest.raises(DatasetError, match=r"has changed|cannot be read"):
        read(tmp_path, last, FIELDS, "id")
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        read(tmp_path, last, FIELDS, "id")
