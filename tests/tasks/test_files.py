import csv
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contraprune.errors import UserError
from contraprune.tasks.files import READERS, read, read_directory, shown

ROWS = [{"text": "a fine film", "label": 1}, {"text": 'a "dull"\nfilm\u2028, indeed', "label": 0}]


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of the path's ending, with the standard library or pyarrow."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        case ".json":
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ending:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0], delimiter="," if ending == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
    return path


def failure(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def broken(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return failure(path)


@pytest.mark.parametrize("ending", READERS)
def test_all_formats_give_the_same_rows(tmp_path, ending):
    rows = read(write(tmp_path / f"data{ending}", ROWS))
    expected = ROWS if rows.typed else [{k: str(v) for k, v in row.items()} for row in ROWS]
    assert list(rows.values) == expected
    assert rows.typed == (ending not in (".csv", ".tsv"))
    assert rows.columns == ["text", "label"]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
@pytest.mark.parametrize("ending", READERS)
def test_any_text_survives_every_format(ending, texts):
    expected = [{"text": text, "other": text[::-1]} for text in texts]
    with tempfile.TemporaryDirectory() as directory:
        rows = read(write(Path(directory) / f"data{ending}", expected))
    assert list(rows.values) == expected
    assert rows.texts("text") == texts


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_byte_order_mark_windows_line_ends_and_upper_case_ending(tmp_path, ending):
    path = write(tmp_path / f"data{ending}", [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path = tmp_path / f"other{ending.upper()}"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert read(path).texts("text") == ["a", "b"]


def test_json_may_hold_lines(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    rows = read(path)
    assert rows.texts("text") == ["a", "b"]
    assert rows.numbers == [1, 3]


def test_csv_rows_are_numbered_by_their_first_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"one\ntwo",1\n\nthree,0\n')
    assert read(path).numbers == [2, 5]


def test_csv_takes_texts_of_any_length(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "data.csv", [{"text": "x" * 200_000, "label": 1}])
    assert len(read(path).texts("text")[0]) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (["a", '"b" c', 'd "e"'], 3),
        (['"a', "b"], 2),
        (["a", 'b "c"', '"'], 4),
        (['"a', 'b"', "c"], 2),  # one field of two lines, and then one field too few
    ],
)
def test_tsv_without_quoting(tmp_path, fields, line):
    path = tmp_path / "data.tsv"
    path.write_text("text\tother\tlabel\n" + "".join(f"{field}\t{field}\t1\n" for field in fields))
    with pytest.warns(UserWarning, match=rf"^{path}, line {line}: .*; so quotes in this file are read as text$"):
        rows = read(path)
    assert rows.texts("text") == rows.texts("other") == fields
    assert rows.numbers == [*range(2, len(fields) + 2)]


def test_tsv_that_is_quoted_reads_as_quoted(tmp_path, recwarn):
    path = tmp_path / "data.tsv"
    path.write_text('text\tlabel\n"a ""quoted"" word"\t1\n"a tab\tand\na line"\t"0"\nb "c" d\t1\n')
    rows = read(path)
    assert rows.texts("text") == ['a "quoted" word', "a tab\tand\na line", 'b "c" d']
    assert (rows.texts("label"), rows.numbers) == (["1", "0", "1"], [2, 3, 5])
    assert not recwarn.list


@pytest.mark.parametrize("ending", READERS)
def test_missing_file(tmp_path, ending):
    assert failure(tmp_path / f"nothing{ending}") == ": no such file"


@pytest.mark.parametrize("ending", READERS)
def test_directory_in_place_of_a_file(tmp_path, ending):
    (tmp_path / f"data{ending}").mkdir()
    assert failure(tmp_path / f"data{ending}") == ": expected a file, found a directory"


def test_file_that_the_system_refuses(tmp_path):
    assert failure(tmp_path / ("x" * 300 + ".csv")) == ": cannot be read (File name too long)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel\n\n"),
    ],
)
def test_empty_file(tmp_path, name, content):
    assert broken(tmp_path, name, content) == ": expected at least one row of data, found none"


def test_empty_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert failure(path) == ": expected at least one row of data, found none"


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1 cut off PAR1"])
def test_broken_parquet(tmp_path, content):
    assert broken(tmp_path, "a.parquet", content).startswith(": expected a parquet file that can be read (")


def test_parquet_with_other_encoding(tmp_path):
    path = tmp_path / "a.parquet"
    latin = pa.array([b"plain", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": latin}), path)
    assert failure(path).startswith(": expected a parquet file that can be read ('utf-8' codec can't decode")


@pytest.mark.parametrize("name", ["data.txt", "data", "data.jsonl.gz"])
def test_unknown_ending(tmp_path, name):
    message = broken(tmp_path, name, "{}")
    ending = Path(name).suffix
    assert message == f": expected a file ending in .jsonl, .json, .csv, .tsv, .parquet, found '{ending}'"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_other_encodings(tmp_path, name):
    content = '{"text": "plain"}\n{"text": "caf\xe9"}\n'.encode("latin-1")
    assert broken(tmp_path, name, content) == ", line 2: expected UTF-8 text, found byte 0xe9"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', ", line 3, column 10: expected valid JSON (Expecting value)"),
        ("a.jsonl", '{"text": "a"} {}\n', ", line 1, column 15: expected valid JSON (Extra data)"),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]', ", line 2, column 9: expected valid JSON"),
        ("a.json", '{"a": [\n1]}', ", line 1, column 8: expected valid JSON"),
        ("a.jsonl", '{"text": "a"}\n["b", 1]\n', ", line 2: expected a JSON object such as"),
        ("a.json", '[{"text": "a"}, null]', ", row 2: expected a JSON object such as"),
        ("a.jsonl", "{}\n" + "[" * 200_000, ", line 2: expected valid JSON"),
        ("a.jsonl", '{"label": ' + "1" * 5_000 + "}", ", line 1: expected valid JSON"),
        ("a.csv", "text,label\na,1\nb\n", ", line 3: expected 2 fields ('text', 'label'), found 1"),
        ("a.csv", "text,label\na, b,1\n", ", line 2: expected 2 fields ('text', 'label'), found 3"),
        ("a.tsv", 'text\tlabel\n"a\nb"\t1\tx\n', ", line 2: expected 2 fields ('text', 'label'), found 3"),
        ("a.csv", 'text,label\na,1\n"b,1\nc,1\n', ", line 3: broken quotes (unexpected end of data)"),
        ("a.csv", 'text,label\n"a" b,1\n', ", line 2: broken quotes ("),
        ("a.tsv", '"text"\t"label"\n"a" b\t1\n', ", line 2: broken quotes ("),
        ("a.tsv", 'text\tlabel\n"a" b\t1\nc\n', ", line 2: broken quotes ("),
        ("a.tsv", 'text\tlabel\n"a""b"\t1\n"c\nd"\n', ", line 3: expected 2 fields ('text', 'label'), found 1"),
        ("a.csv", "text,label,text\na,1,b\n", ", line 1: expected different columns, found 'text', 'label'"),
    ],
)
def test_broken_content(tmp_path, name, content, message):
    assert broken(tmp_path, name, content).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2: expected a column 'text', found columns 'txt'"),
        ('{"text": "a"}\n\n{"text": null}\n', "line 3: expected text in column 'text', found null"),
        ('{"text": 5}\n', "line 1: expected text in column 'text', found 5"),
        ('{"text": ["a"]}\n', "line 1: expected text in column 'text', found ['a']"),
        (
            '{"text": "é"}\n{"text": "\\ud83d"}\n',
            "line 2: expected valid Unicode, found half of a surrogate pair in column 'text'",
        ),
    ],
)
def test_broken_text_column(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(path).texts("text")
    assert str(caught.value) == f"{path}, {message}"


def test_text_that_is_too_long_for_an_error_is_cut(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [None, list(range(10_000))]}), path)
    with pytest.raises(UserError, match="row 1: expected text in column 'text', found null"):
        read(path).texts("text")
    pq.write_table(pa.table({"text": [list(range(10_000))]}), path)
    with pytest.raises(UserError) as caught:
        read(path).texts("text")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_names_in_errors_stay_on_one_line():
    assert shown(["a\nb", 3, "it's", "x" * 100]) == f"""'a\\nb', '3', "it's", '{"x" * 59}…"""
    assert shown(range(20)).endswith(", '10', '11' and 8 more")
    assert shown({}) == ""


def test_directory(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "validation_matched.jsonl", ROWS[:1])
    (tmp_path / "README.md").touch()
    both = ("validation_matched", "validation_mismatched")
    splits = read_directory(tmp_path, train=True, evaluation=both)
    assert {split: len(rows.values) for split, rows in splits.items()} == {"train": 2, "validation_matched": 1}
    assert list(read_directory(tmp_path, train=False, evaluation=both)) == ["validation_matched"]
    assert list(read_directory(tmp_path, train=True, evaluation=())) == ["train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "expected train.* (.jsonl, .json, .csv, .tsv, .parquet), found an empty directory"),
        (["test.jsonl"], "expected train.* (.jsonl, .json, .csv, .tsv, .parquet), found 'test.jsonl'"),
        (
            ["train.jsonl"],
            "expected validation.* (.jsonl, .json, .csv, .tsv, .parquet), found 'train.jsonl'",
        ),
        (["train.jsonl", "train.csv"], "expected one train file, found 'train.jsonl', 'train.csv'"),
    ],
)
def test_directory_without_the_right_files(tmp_path, files, message):
    for file in files:
        write(tmp_path / file, ROWS)
    with pytest.raises(UserError) as caught:
        read_directory(tmp_path, train=True, evaluation=("validation",))
    assert str(caught.value) == f"--data_dir {tmp_path}: {message}"


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match=r"--data_dir .*nowhere: expected a directory, found nothing"):
        read_directory(tmp_path / "nowhere", train=True, evaluation=())
    with pytest.raises(UserError, match=r"--data_dir .*a\.csv: expected a directory, found a file"):
        read_directory(write(tmp_path / "a.csv", ROWS), train=True, evaluation=())
