"""The stream: determinism, shares, epochs, and resuming at the exact example; the hold-out it leaves out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.data import (
    ByteTokenizer,
    ExampleStream,
    StreamOptions,
    open_source,
    open_stream,
    validation_batches,
)
from peer.data.seeded import held_out
from peer.data.stream import START
from peer.values import Batch, Cursor
from swarm.errors import DataError, UsageError
from tests.unit.test_data_sources import a_manifest

OPTIONS = StreamOptions(seed=3, sequence_length=4, batch_size=2, held_out=0.0)


class ListSource:
    """Documents by shard, from memory; each text is one letter, repeated."""

    def __init__(self, lengths: list[list[int]]) -> None:
        letters = iter(map(chr, range(ord("!"), 0x10FFFF)))
        self.shards = [[(next(letters), length) for length in shard] for shard in lengths]

    @property
    def shard_count(self) -> int:
        return len(self.shards)

    def documents(self, shard: int, order: str = "") -> Iterator[tuple[str, str]]:
        # As a real source does: the order depends on ``order`` and the id, and on nothing else.
        for letter, length in sorted(
            self.shards[shard], key=lambda pair: hashlib.sha256(f"{order}{pair[0]}".encode()).digest()
        ):
            yield letter, letter * length


def letters_of(batches: list[Batch]) -> set[str]:
    text = "".join(ByteTokenizer().decode(batch.tokens.flatten().tolist()) for batch in batches)
    return set(text) - {"\ufffd"}


def stream_of(source: ListSource, reader: str = "a", cursor: Cursor = START, **options: Any) -> ExampleStream:
    changed = replace(OPTIONS, **options)
    return ExampleStream(source, ByteTokenizer(), changed, reader, cursor)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return [batch.cursor for batch in left] == [batch.cursor for batch in right] and all(
        torch.equal(one.tokens, other.tokens) for one, other in zip(left, right, strict=True)
    )


def test_documents_are_joined_cut_and_their_rest_is_dropped() -> None:
    batch = next(stream_of(ListSource([[6, 3]]), batch_size=2))
    assert batch.tokens.dtype == torch.int64 and batch.tokens.shape == (2, 4)
    first, second = (ord("!"), 6), (ord('"'), 3)
    expected = [[letter] * length + [256] for letter, length in (first, second)]
    assert batch.tokens.flatten().tolist() in (
        (expected[0] + expected[1])[:8],
        (expected[1] + expected[0])[:8],
    )
    assert batch.cursor == Cursor(shard_number=0, block=2)


def test_an_epoch_takes_every_shard_once_and_the_next_takes_them_in_another_order() -> None:
    source = ListSource([[7] for _ in range(12)])  # two examples in each shard
    stream = stream_of(source)
    first, second = list(islice(stream, 12)), list(islice(stream, 12))
    assert letters_of(first) == letters_of(second) == {shard[0][0] for shard in source.shards}
    assert [batch.tokens[0, 0].item() for batch in first] != [batch.tokens[0, 0].item() for batch in second]
    assert [batch.cursor for batch in first + second] == [Cursor(number, 2) for number in range(24)]


def test_a_batch_may_span_shards_and_epochs() -> None:
    stream = stream_of(ListSource([[3], [7]]), batch_size=4)  # one and two examples: three an epoch
    taken = list(islice(stream, 3))
    assert [batch.cursor.shard_number for batch in taken][-1] == 7  # 12 examples end four epochs of two shards
    ends = sorted(token for batch in taken for token in batch.tokens[:, 3].tolist() if token == 256)
    assert len(ends) == 8


def test_peers_read_different_shards_at_the_same_time() -> None:
    source = ListSource([[7] for _ in range(64)])
    firsts = {next(stream_of(source, reader)).tokens[0, 0].item() for reader in map(str, range(20))}
    assert len(firsts) > 12


def test_two_peers_in_one_shard_read_its_documents_in_different_orders() -> None:
    source = ListSource([[4] * 30])
    left, right = (next(stream_of(source, reader, batch_size=30)).tokens for reader in "ab")
    assert not torch.equal(left, right)


lengths = st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=1, max_size=8).filter(
    lambda shards: any(sum(shard) + len(shard) >= 4 for shard in shards)
)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, batch_size=st.integers(1, 5), k=st.integers(0, 12), seed=st.integers(0, 2**63 - 1))
def test_every_cursor_resumes_at_the_next_example(lengths: list[list[int]], batch_size: int, k: int, seed: int) -> None:
    source = ListSource(lengths)
    whole = list(islice(stream_of(source, batch_size=batch_size, seed=seed), k + 6))
    resumed = stream_of(source, batch_size=batch_size, seed=seed, cursor=whole[k].cursor)
    assert same(list(islice(resumed, 5)), whole[k + 1 :])


@settings(max_examples=60, deadline=None)
@given(shard_count=st.integers(1, 40), count=st.integers(1, 45))
def test_data_shards_are_disjoint_and_together_everything(shard_count: int, count: int) -> None:
    source = ListSource([[7]] * shard_count)
    if count > shard_count:
        with pytest.raises(DataError, match=rf"^data_shard: 0/{count} needs at least {count} shards"):
            stream_of(source, data_shard=f"0/{count}")
        return
    shares = []
    for index in range(count):
        mine = range(index, shard_count, count)
        stream = stream_of(source, data_shard=f"{index}/{count}")
        taken = letters_of(list(islice(stream, 3 * len(mine))))
        assert taken == {source.shards[shard][0][0] for shard in mine}
        shares.append(taken)
    assert sum(map(len, shares)) == len(set().union(*shares)) == shard_count


def test_a_share_is_the_same_whoever_reads_it() -> None:
    source = ListSource([[20, 9], [11, 3], [8]])
    left, right = (stream_of(source, reader, data_shard="1/2") for reader in ("left", "right"))
    assert same(list(islice(left, 20)), list(islice(right, 20)))


@pytest.mark.parametrize("data_shard", ["1", "4/4", "5/4", "-1/4", "0/0", "a/b", "1/2/3", " 0/4"])
def test_a_malformed_data_shard_is_refused(data_shard: str) -> None:
    with pytest.raises(UsageError, match=r"^data_shard: .* is not i/n with 0 <= i < n"):
        stream_of(ListSource([[9]]), data_shard=data_shard)


@pytest.mark.parametrize("cursor", [Cursor(), Cursor(5, 2)])
def test_an_epoch_without_an_example_ends_in_an_error(cursor: Cursor) -> None:
    with pytest.raises(DataError, match=r"^data: a whole epoch \(3 shards\) holds not one example"):
        next(stream_of(ListSource([[1], [], [2]]), cursor=cursor))
    with pytest.raises(DataError, match="outside validation"):
        next(stream_of(ListSource([[90]]), held_out=1.0, cursor=cursor))


# --- from a manifest, on real data


def test_the_stream_is_the_same_in_another_process() -> None:
    program = """
import hashlib, itertools, sys
from peer.data import open_stream, validation_batches
from tests.unit.test_data_sources import a_manifest
digest = hashlib.sha256()
for batch in itertools.islice(open_stream(a_manifest(), "peer"), 50):
    digest.update(batch.tokens.numpy().tobytes() + repr(batch.cursor).encode())
for tokens in validation_batches(a_manifest()):
    digest.update(tokens.numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_resuming_on_the_standard_library() -> None:
    manifest = a_manifest(sequence_length=512)
    whole = list(islice(open_stream(manifest, "peer"), 400))  # 800 kB: several shards
    assert whole[-1].cursor.shard_number >= 2
    for k in (0, 57, 399 - 20):
        resumed = open_stream(manifest, "peer", whole[k].cursor)
        assert same(list(islice(resumed, 20)), whole[k + 1 : k + 21])


# --- validation


@given(st.integers(0, 2**63 - 1), st.text(), st.floats(0, 1))
def test_held_out_is_the_documented_formula(seed: int, document_id: str, fraction: float) -> None:
    digest = hashlib.sha256(f"{seed}:{document_id}".encode("utf-8")).hexdigest()  # noqa: UP012 - as documented
    assert held_out(seed, document_id, fraction) == (int(digest, 16) < int(fraction * 2**256))
    assert not held_out(seed, document_id, 0.0) and held_out(seed, document_id, 1.0)


def write_corpus(folder: Path, documents: int) -> str:
    """JSON Lines whose document n is made of the character with code 0x4E00 + n."""
    rows = [json.dumps({"text": chr(0x4E00 + number) * 40}, ensure_ascii=False) for number in range(documents)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return f'source = "text"\npaths = [{json.dumps(str(folder / "rows.jsonl"))}]'


def test_no_peer_trains_on_what_is_held_out(tmp_path: Path) -> None:
    manifest = a_manifest(write_corpus(tmp_path, 200), fraction=0.2, sequence_length=128)
    source = open_source(manifest.data)
    pairs = [pair for shard in range(source.shard_count) for pair in source.documents(shard)]
    kept = {text[0] for name, text in pairs if held_out(7, name, 0.2)}
    validated = letters_of([Batch(tokens, Cursor()) for tokens in validation_batches(manifest)])
    assert 20 < len(kept) < 60 and validated and validated <= kept
    trained = letters_of([batch for reader in "ab" for batch in islice(open_stream(manifest, reader), 100)])
    assert len(trained) > 100 and not trained & kept


def test_validation_is_the_same_each_time_in_batches_of_batch_size() -> None:
    manifest = a_manifest(examples=10, batch_size=4)
    batches = validation_batches(manifest)
    assert [tuple(tokens.shape) for tokens in batches] == [(4, 64), (4, 64), (2, 64)]
    assert all(tokens.dtype == torch.int64 for tokens in batches)
    assert all(map(torch.equal, batches, validation_batches(manifest)))


def test_no_document_is_most_of_the_validation() -> None:
    batches = validation_batches(a_manifest(examples=64, batch_size=64, sequence_length=128))
    assert (batches[0] == 256).sum() >= 15  # ends of documents


def test_one_document_is_all_used_where_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(f"{number}.txt" for number in range(99) if held_out(7, f"{number}.txt:0", 0.5))
    Path(name).write_text("bee " * 200)
    data = f'source = "text"\npaths = ["{name}"]'
    # Its 800 bytes and their end are 100 examples; a sixteenth of the 64 wanted would be 4.
    for examples, count in ((64, 64), (1000, 100)):
        manifest = a_manifest(data, fraction=0.5, examples=examples, batch_size=256, sequence_length=8)
        assert [len(tokens) for tokens in validation_batches(manifest)] == [count]


def test_no_validation_wanted_is_no_error(tmp_path: Path) -> None:
    manifest = a_manifest(write_corpus(tmp_path, 20), fraction=0.0, examples=0)
    assert validation_batches(manifest) == []


def test_nothing_held_out_says_what_to_raise(tmp_path: Path) -> None:
    manifest = a_manifest(write_corpus(tmp_path, 20), fraction=1e-9)
    with pytest.raises(DataError, match=r"^validation\.fraction: 1e-09 .*raise validation\.fraction"):
        validation_batches(manifest)
