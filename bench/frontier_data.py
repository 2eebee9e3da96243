"""Examples in random order: what bench/frontier.py and the real peers that confirm it train on.

    .venv/bin/python -m bench.frontier_data

A peer reads one document after another, so that its batch is one stretch of one file, and the loss at any moment is
more about the files just read than about how they were learned. This cuts the source of the standard library into
pieces of one example each and writes them in random order, one JSON line each.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from peer.data.sources import open_source
from swarm.manifest import Data

FILE = Path("build") / "frontier.jsonl"
"""Below the folder in which everything runs, as the manifests have it."""


def write(path: Path = FILE, length: int = 64) -> None:
    """Pieces of ``length`` - 1 bytes, each once: the end of text fills the last place of an example."""
    source = open_source(Data(source="stdlib", sequence_length=length, batch_size=1))
    pieces: dict[str, None] = {}
    for shard in range(source.shard_count):
        for _, text in source.documents(shard):
            whole = text.encode()
            for start in range(0, len(whole) - length + 2, length - 1):
                piece = whole[start : start + length - 1].decode(errors="ignore")
                if len(piece.encode()) == length - 1:  # not cut in the middle of a character
                    pieces[piece] = None
    shuffled = list(pieces)
    random.Random(0).shuffle(shuffled)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in shuffled), encoding="utf-8")
    print(f"{path}: {len(pieces)} examples")


if __name__ == "__main__":
    write()
