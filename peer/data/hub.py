"""Documents streamed from a model hub's data sets, or from a local directory by the same code path.

The ``datasets`` library is an optional dependency: pip install 'waggle[hub]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swarm.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from swarm.manifest import Data

MIN_SHARDS = 16


def load_library() -> Any:
    """The module ``datasets``. Raises MissingExtraError."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("data.source = 'hub' needs the datasets library; pip install 'waggle[hub]'") from error
    return datasets


class HubSource:
    """``datasets.load_dataset(..., streaming=True)``: nothing is downloaded before it is read.

    A data set's own shards are its files. Where those are fewer than 16, each is striped by document index
    until there are at least 16 shards, so that peers do not all read one file in step; a stripe costs reading
    its whole file. A document's id is "file:index", striped or not.
    """

    def __init__(self, data: Data) -> None:
        """Raises MissingExtraError without ``datasets``, DataError when the data set cannot be opened."""
        datasets = load_library()
        datasets.disable_progress_bars()
        self._name, self._field = str(data.dataset), data.field
        with self._reported("cannot open"):
            self._stream: Any = datasets.load_dataset(
                self._name, name=data.config, split=data.split, revision=data.revision, streaming=True
            )
            self._files: int = self._stream.num_shards
        columns = self._stream.column_names  # None where only reading would tell
        if columns is not None and self._field not in columns:
            raise DataError(f"data.field: {self._name!r} has no column {self._field!r}; it has {', '.join(columns)}")
        self._stripes: int = -(-MIN_SHARDS // self._files)

    @property
    def shard_count(self) -> int:
        """Files x stripes: at least 16."""
        return self._files * self._stripes

    def documents(self, shard: int, order: str = "") -> Iterator[tuple[str, str]]:
        """The (document id, text) pairs of one shard, as stored: a stream cannot be shuffled cheaply."""
        file, stripe = divmod(shard, self._stripes)
        with self._reported("cannot read"):
            for index, row in enumerate(self._stream.shard(num_shards=self._files, index=file)):
                if index % self._stripes != stripe:
                    continue
                text = row.get(self._field)
                if text is not None and not isinstance(text, str):
                    raise DataError(f"data.field: column {self._field!r} of {self._name!r} is not text")
                if text:  # a null in somebody else's data set is a document less
                    yield f"{file}:{index}", text

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            # The library and what lies under it (HTTP, Arrow, file systems) share no base class of errors.
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(f"data.dataset: {what} {self._name!r}: {reason}") from error
