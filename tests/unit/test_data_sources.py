"""Sources: which documents there are, under which ids, in which shards."""

from __future__ import annotations

import json
import sysconfig
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peer.data import Source, open_source
from peer.data.files import FileSource, TextFile, _read_json_lines, _read_text, text_source
from swarm.errors import DataError
from swarm.manifest import Manifest

MANIFEST = """
waggle = 1
name = "test"
seed = 7
task = "causal-lm"
[model]
type = "gpt2"
config = {{ n_layer = 1, n_head = 1, n_embd = 8 }}
[tokenizer]
name = {tokenizer}
[data]
{data}
sequence_length = {sequence_length}
batch_size = {batch_size}
[outer]
optimizer = "sgd"
learning_rate = 0.1
[round]
average = "gradients"
inner_steps = 1
[validation]
fraction = {fraction}
examples = {examples}
every = 5
"""


def a_manifest(
    data: str = 'source = "stdlib"',
    tokenizer: str = "bytes",
    sequence_length: int = 64,
    batch_size: int = 4,
    fraction: float = 0.05,
    examples: int = 16,
) -> Manifest:
    return Manifest.from_toml(
        MANIFEST.format(
            data=data,
            tokenizer=json.dumps(tokenizer),
            sequence_length=sequence_length,
            batch_size=batch_size,
            fraction=fraction,
            examples=examples,
        )
    )


def all_documents(source: Source) -> dict[str, str]:
    """Every document; fails when an id comes twice."""
    pairs = [pair for shard in range(source.shard_count) for pair in source.documents(shard)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# --- stdlib


def test_stdlib_is_the_library_without_its_tests_and_packages() -> None:
    source = open_source(a_manifest().data)
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = all_documents(source)
    assert source.shard_count == 64
    assert documents["json/decoder.py"] == (root / "json/decoder.py").read_bytes().decode()
    assert {"os.py", "asyncio/tasks.py", "xml/dom/minidom.py"} <= documents.keys()
    for name in documents:
        assert not set(name.split("/")) & {
            "site-packages",
            "dist-packages",
            "__pycache__",
            "test",
            "idle_test",
        }


def test_stdlib_skips_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text("good = True\n")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert all_documents(open_source(a_manifest().data)) == {"good.py": "good = True\n"}


def test_stdlib_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"^data\.source: .*no library source in "):
        open_source(a_manifest().data)


# --- text


def test_text_by_globs_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text("one")
    (tmp_path / "corpus" / "deep" / "b.txt").write_text("\ufefftwo")
    (tmp_path / "corpus" / "deep" / "er" / "c.txt").write_text("three")
    (tmp_path / "odd[1].txt").write_text("four")
    (tmp_path / "corpus" / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    data = 'source = "text"\npaths = ["corpus/**/*.txt", "./corpus/a.txt", "odd[1].txt"]'
    assert all_documents(open_source(a_manifest(data).data)) == {
        "corpus/a.txt:0": "one",
        "corpus/deep/b.txt:0": "two",
        "corpus/deep/er/c.txt:0": "three",
        "odd[1].txt:0": "four",
    }


def test_a_home_directory_is_not_part_of_a_documents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("ann", "bob"):
        (tmp_path / home / "corpus").mkdir(parents=True)
        (tmp_path / home / "corpus" / "a.txt").write_text("one")
        monkeypatch.setenv("HOME", str(tmp_path / home))
        source = text_source(["~/corpus/*.txt", "~/corpus/a.txt"], "text", 64)
        assert all_documents(source) == {"~/corpus/a.txt:0": "one"}


def test_text_without_a_match_names_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("text")
    patterns = [str(tmp_path / "*.txt"), str(tmp_path / "*.md")]
    with pytest.raises(DataError, match=r"^data\.paths: '.*\*\.md' matches no file \(current directory: "):
        text_source(patterns, "text", 64)


def test_text_of_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"^data\.paths: every file that matches .* is empty"):
        text_source([str(tmp_path / "*.txt")], "text", 64)


def test_a_file_that_went_away(tmp_path: Path) -> None:
    path = tmp_path / "gone.txt"
    path.write_text("text")
    source = text_source([str(path)], "text", 1)
    path.unlink()
    with pytest.raises(DataError, match=r"^data\.paths: cannot read .*gone\.txt: No such file"):
        list(source.documents(0))


def test_a_big_file_is_cut_at_newlines_into_pieces_of_about_64_kib(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    lines = [f"{number} bee{'s' * (number % 97)}\n" for number in range(400_000)]
    path.write_text("".join(lines))
    documents = all_documents(text_source([str(path)], "text", 128))
    offsets = sorted(documents, key=lambda name: int(name.rsplit(":", 1)[1]))
    assert "".join(documents[name] for name in offsets) == "".join(lines)
    assert all(text.endswith("\n") for text in documents.values())
    sizes = [len(documents[name]) for name in offsets[:-1]]
    assert min(sizes) > 65536 - 200 and max(sizes) < 65536 + 200


def test_a_small_corpus_is_cut_finer_so_that_some_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("a line of thirty characters .\n" * 30_000)
    assert 200 < len(all_documents(text_source([str(tmp_path / "small.txt")], "text", 128))) <= 260


def test_short_shards_are_joined_rather_than_dropped(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text("x" * 99 + "\n")
    pattern = str(tmp_path / "*.txt")
    assert text_source([pattern], "text", 16).shard_count == 64
    assert text_source([pattern], "text", 128).shard_count == 10000 // (8 * 128)
    assert text_source([pattern], "text", 100_000).shard_count == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet=st.sampled_from("ab\né→🐝"), min_size=1, max_size=900),
    piece_bytes=st.integers(min_value=8, max_value=200),
)
def test_pieces_of_a_text_join_to_the_text(tmp_path: Path, text: str, piece_bytes: int) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    files = [TextFile("text.txt", path, path.stat().st_size)]
    source = FileSource(files, piece_bytes, 1, _read_text)
    documents = all_documents(source)
    offsets = sorted(documents, key=lambda name: int(name.rsplit(":", 1)[1]))
    assert "".join(documents[name] for name in offsets) == text  # no character split, lost or doubled


# --- JSON Lines


def test_json_lines_give_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        '\ufeff{"body": "one", "id": 1}',
        "",
        '{"body": "tw\\u00f6 \\ud83d"}',
        '{"body": ""}',
        '{"body": "last"}',
    ]
    path.write_bytes("\r\n".join(rows).encode())
    source = text_source([str(path)], "body", 1)
    assert sorted(all_documents(source).values()) == ["last", "one", "twö ?"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "not a line of JSON: Expecting value"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[" * 100_000, "not a line of JSON: nested too deeply"),
        (b'{"body": "other field"}', r"no text in the field 'text' \(data\.field names it\)"),
        (b'{"text": 3}', "no text in the field 'text'"),
        (b'["text"]', "no text in the field 'text'"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' * 300 + line + b"\n" + b'{"text": "fine"}\n')
    with pytest.raises(DataError, match=rf"^{path}:601: {reason}"):
        all_documents(text_source([str(path)], "text", 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(min_size=1, max_size=60).filter(lambda text: "\ufeff" not in text), min_size=1, max_size=40),
    piece_bytes=st.integers(min_value=1, max_value=300),
)
def test_pieces_of_json_lines_hold_each_line_once(tmp_path: Path, texts: list[str], piece_bytes: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    files = [TextFile("rows.jsonl", path, path.stat().st_size)]
    source = FileSource(files, piece_bytes, 1, partial(_read_json_lines, field="text"))
    assert sorted(all_documents(source).values()) == sorted(texts)


# --- shards


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(min_value=0, max_value=5000), min_size=1, max_size=120).filter(any),
    piece_bytes=st.sampled_from([0, 100, 1024]),
    sequence_length=st.integers(min_value=1, max_value=200),
    order=st.text(max_size=3),
)
def test_shards_partition_the_documents(sizes: list[int], piece_bytes: int, sequence_length: int, order: str) -> None:
    files = [TextFile(str(index), Path(str(index)), size) for index, size in enumerate(sizes)]
    source = FileSource(
        files,
        piece_bytes,
        sequence_length,
        lambda file, offset, length: iter([(f"{file.name}:{offset}", "text")]),
    )
    shards = [[name for name, _ in source.documents(shard, order)] for shard in range(source.shard_count)]
    names = [name for shard in shards for name in shard]
    step = piece_bytes or max(sizes)
    assert sorted(names) == sorted(
        f"{index}:{offset}" for index, size in enumerate(sizes) for offset in range(0, size, step)
    )
    assert 1 <= source.shard_count <= 64
    assert min(map(len, shards)) >= 1  # none is empty
    assert max(map(len, shards)) - min(map(len, shards)) <= 1  # and all are level
    again = [[name for name, _ in source.documents(shard)] for shard in range(source.shard_count)]
    assert [sorted(shard) for shard in shards] == [sorted(shard) for shard in again]  # order moves nothing across


def test_a_shard_of_a_huge_corpus_stays_small_enough_to_resume() -> None:
    files = [TextFile("huge", Path("huge"), 40 * 2**30)]  # only its name and size matter before it is read
    assert FileSource(files, 2**16, 1024, _read_text).shard_count == 40 * 2**30 // 2**26
