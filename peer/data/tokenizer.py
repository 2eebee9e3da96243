"""Text to token ids: UTF-8 bytes, which need nothing, or any transformers tokenizer by path or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from swarm.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarm.manifest import Manifest

BYTES = "bytes"


class Tokenizer(Protocol):
    """What the data stream and the demo need of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Every id is below it."""
        ...

    @property
    def end_of_text_id(self) -> int:
        """The id between two documents."""
        ...

    def encode(self, text: str) -> NDArray[np.int64]:
        """int64 [tokens], without special tokens: text that spells one is only text."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """The text of ``ids``; ids that are not text are left out."""
        ...


class ByteTokenizer:
    """One id for each byte of UTF-8, and 256 for the end of a text."""

    vocabulary_size = 257
    end_of_text_id = 256

    def encode(self, text: str) -> NDArray[np.int64]:
        """int64 [bytes], each below 256."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """Text; a model may well generate bytes that are no UTF-8, which show as U+FFFD."""
        return bytes(int(token) for token in ids if 0 <= token < 256).decode("utf-8", errors="replace")


class TransformersTokenizer:
    """A transformers tokenizer, from a directory or a hub id. Code that comes with it is never run."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Raises DataError when it cannot be loaded, or has no token to put between documents."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(Path(name).expanduser()) if name.startswith("~") else name,
                revision=revision or "main",
                trust_remote_code=False,
            )
        except Exception as error:
            # It raises whatever its many formats and the network under it raise.
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(f"tokenizer.name: cannot load {name!r}: {reason}") from error
        end = self._tokenizer.eos_token_id
        end = self._tokenizer.pad_token_id if end is None else end
        if end is None:
            raise DataError(
                f"tokenizer.name: {name!r} has neither an end-of-text nor a padding token to put between "
                "documents; name another tokenizer, or save this one with an eos_token"
            )
        self._end_of_text_id = int(end)
        self._vocabulary_size = len(self._tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Added tokens included."""
        return self._vocabulary_size

    @property
    def end_of_text_id(self) -> int:
        """The eos token, else the padding token."""
        return self._end_of_text_id

    def encode(self, text: str) -> NDArray[np.int64]:
        """int64 [tokens]."""
        # verbose=False: a document may exceed the model's window, for it is cut into examples afterwards.
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
        return np.asarray(encoded["input_ids"], dtype=np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))


def open_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that ``[tokenizer]`` names. Raises DataError when it cannot be loaded."""
    if manifest.tokenizer.name == BYTES:
        return ByteTokenizer()
    return TransformersTokenizer(manifest.tokenizer.name, manifest.tokenizer.revision)
