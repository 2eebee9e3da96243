"""Tokenizers: bytes, and a real one trained here and saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as TokenizersTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from peer.data import ByteTokenizer, open_tokenizer
from swarm.errors import DataError
from tests.unit.test_data_sources import a_manifest

TEXT = "def waggle(bee):\n    return bee.dance() or '🐝 é'\n"


def save_tokenizer(folder: Path, **special: Any) -> Path:
    """A byte-level BPE tokenizer of 300 tokens, trained on a few lines."""
    tokenizer = TokenizersTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@given(st.text())
def test_bytes_go_and_come_back(text: str) -> None:
    tokenizer = open_tokenizer(a_manifest())
    ids = tokenizer.encode(text)
    assert isinstance(tokenizer, ByteTokenizer)
    assert ids.dtype == np.int64 and ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids.tolist(), tokenizer.end_of_text_id]) == text


def test_bytes_of_what_is_not_text() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text_id) == (257, 256)
    assert tokenizer.decode([0xFF, 65, 256, -100]) == "\ufffdA"
    assert tokenizer.encode("\ud83d").tolist() == [ord("?")]


def test_a_transformers_tokenizer_from_a_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tokenizer(tmp_path / "bpe", eos_token="<end>", model_max_length=8)
    tokenizer = open_tokenizer(a_manifest(tokenizer=str(folder)))
    ids = tokenizer.encode(TEXT * 20)
    assert ids.dtype == np.int64 and ids.ndim == 1
    assert 8 < len(ids) < len(TEXT.encode()) * 20  # merged, and not cut at model_max_length
    assert tokenizer.decode(ids) == TEXT * 20
    assert ids.max() < tokenizer.vocabulary_size and tokenizer.end_of_text_id < tokenizer.vocabulary_size
    assert tokenizer.decode([tokenizer.end_of_text_id]) == ""
    assert tokenizer.encode("").dtype == np.int64 and len(tokenizer.encode("")) == 0
    # A document that spells the special token does not become one.
    assert tokenizer.end_of_text_id not in tokenizer.encode("a <end> b")
    assert tokenizer.decode(tokenizer.encode("a <end> b")) == "a <end> b"
    assert caplog.records == [] and "longer than" not in capfd.readouterr().err


def test_padding_stands_in_for_a_missing_end_of_text(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, pad_token="<pad>")
    tokenizer = open_tokenizer(a_manifest(tokenizer=str(folder)))
    assert tokenizer.end_of_text_id == tokenizer.vocabulary_size - 1


def test_a_tokenizer_without_either_is_refused(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"^tokenizer\.name: .* neither an end-of-text nor a padding token"):
        open_tokenizer(a_manifest(tokenizer=str(folder)))


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^tokenizer\.name: cannot load ") as caught:
        open_tokenizer(a_manifest(tokenizer=str(tmp_path)))  # an empty directory
    assert "\n" not in str(caught.value)
