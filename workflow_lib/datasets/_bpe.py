"""Byte-pair encoding by the package tokenizers: trained on texts, the same on every machine, or read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import Field, model_validator

from workflow_lib.errors import DataError
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import reject_unused
from workflow_lib.shipped import how_to_install

if TYPE_CHECKING:
    import numpy as np

FILE = "tokenizer.json"  # in a folder that `save_pretrained` of a fast tokenizer has written
BLOCK_CHARACTERS = 1 << 20  # encoded at once, up to the last line end


class _Bpe(Section):
    """Byte-pair encoding: `path` reads a tokenizer; without it, one is trained on the training texts."""

    path: Path | None = Field(None, description="tokenizer.json, or a folder of save_pretrained; null trains one")
    vocabulary: int = Field(8192, ge=258, le=1 << 24, description="number of tokens of a tokenizer that is trained")
    min_frequency: int = Field(2, ge=1, description="how often a pair must occur to become a token")
    special: tuple[str, ...] = Field((), description="further tokens that text is never split within, such as <pad>")

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if self.path is not None:
            reject_unused(self, ("vocabulary", "min_frequency", "special"), "training a tokenizer (path: null)")
        return self


class Bpe(_Bpe):
    """Byte-pair encoding of documents, each of which is followed by a token."""

    end: str = Field("<end>", min_length=1, description="token that ends a document")

    @property
    def mark(self) -> Mark:
        """The token that the tokenizer must have."""
        return Mark("end", self.end, "to end a document")


class PaddedBpe(_Bpe):
    """Byte-pair encoding of texts that are filled with a token up to one length."""

    pad: str = Field("<pad>", min_length=1, description="token that fills short texts, and that no text may have")

    @property
    def mark(self) -> Mark:
        """The token that the tokenizer must have."""
        return Mark("pad", self.pad, "to fill short texts")


class Mark(NamedTuple):
    """A token that is no text, the setting with its name, and its use; the first of a tokenizer that is trained."""

    setting: str
    name: str
    use: str


class Tokenizer:
    """A tokenizer from the content of a tokenizer.json, with the number of its mark."""

    mark: int

    def __init__(self, content: str, mark: Mark | None, where: str) -> None:
        self.content = content
        try:
            self._tokenizer = _package().Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises Exception itself
            raise DataError(f"{where}: is not a tokenizer.json ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size: int = self._tokenizer.get_vocab_size()
        if mark is not None:
            self.mark = self._number_of(mark, where)
            if mark.setting == "pad":
                self.content = _with_padding(content, self.mark, mark.name)

    def _number_of(self, mark: Mark, where: str) -> int:
        found: int | None = self._tokenizer.token_to_id(mark.name)
        if found is None:
            special = sorted(token.content for token in self._tokenizer.get_added_tokens_decoder().values())
            known = f"; its special tokens are {', '.join(special[:20])}" if special else ""
            raise DataError(f"{where}: has no token `{mark.name}` {mark.use} (bpe.{mark.setting}){known}")
        return found

    def names(self) -> tuple[str, ...]:
        """Return a readable and unique name for each token: its text, or as the tokenizer writes it."""
        names: list[str] = []
        seen: set[str] = set()
        for number in range(self.size):
            raw = self._tokenizer.id_to_token(number) or f"<unused {number}>"
            text = self._tokenizer.decode([number], skip_special_tokens=False)
            name = next(
                name for name in (text, raw, f"<{number}>") if name and "\ufffd" not in name and name not in seen
            )
            seen.add(name)
            names.append(name)
        return tuple(names)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without tokens that a template would add."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    @property
    def added(self) -> int:
        """The number of tokens that the tokenizer's template adds to a text, such as [CLS] and [SEP]."""
        count: int = self._tokenizer.num_special_tokens_to_add(False)
        return count

    def encode_whole(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Return at most `length` tokens of each text, with those of the template: a text is cut inside of them."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for encoding in encoded:
            encoding.truncate(length - self.added)
        return [self._tokenizer.post_process(encoding).ids for encoding in encoded]

    def encode_long(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the tokens of a text of any length, which comes in blocks; it is divided at the ends of lines."""
        import numpy as np

        for piece in _pieces(blocks):
            yield np.array(self.encode([piece])[0], np.int32)


def _with_padding(content: str, number: int, name: str) -> str:
    """Return the content of tokenizer.json with the token that fills texts, if it is not token 0."""
    tokenizer = json.loads(content)
    padding = None
    if number:
        fixed = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
        padding = {**fixed, "pad_id": number, "pad_token": name}
    if tokenizer.get("padding") == padding:
        return content
    return json.dumps(tokenizer | {"padding": padding}, ensure_ascii=False, separators=(",", ":"))


def token_names(path: Path | None, vocabulary: int) -> tuple[str, ...]:
    """Return a name for each token: that of the tokenizer at the path, or its number."""
    names = () if path is None else Tokenizer(load(path), None, str(path)).names()
    if len(names) > vocabulary:
        raise DataError(f"{path}: has {len(names)} tokens, more than data.params.vocabulary = {vocabulary}")
    return names + tuple(f"<{number}>" if names else str(number) for number in range(len(names), vocabulary))


def train(texts: Iterable[str], settings: Bpe | PaddedBpe) -> str:
    """Return the content of tokenizer.json of a byte-level tokenizer: equal for equal texts and settings."""
    package = _package()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        min_frequency=settings.min_frequency,
        special_tokens=list(dict.fromkeys((settings.mark.name, *settings.special))),
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def load(path: Path) -> str:
    """Return the content of the tokenizer.json at the path, or in a folder of `save_pretrained`."""
    file = path / FILE if path.is_dir() else path
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "has no tokenizer.json: save a fast tokenizer" if path.is_dir() else "cannot be read"
        raise DataError(f"{path}: {what} ({error})") from error


def tokenizer_for(settings: Bpe | PaddedBpe, root: Path, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer in the settings' file, or one that is trained on the texts."""
    if settings.path is not None:
        return Tokenizer(load(root / settings.path), settings.mark, str(settings.path))
    return Tokenizer(train(texts, settings), settings.mark, "the trained tokenizer")


def _pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the text in pieces that end with a line, of about BLOCK_CHARACTERS."""
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) >= BLOCK_CHARACTERS:
            end = rest.rfind("\n", 0, BLOCK_CHARACTERS) + 1 or BLOCK_CHARACTERS
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _package() -> Any:
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: F401 (attributes of the package)
    except ImportError as error:
        raise DataError(f"byte-pair encoding needs tokenizers: {how_to_install('tokenizers')}") from error
    return tokenizers
