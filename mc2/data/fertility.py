"""How well a tokenizer serves each language of a folder of shards: what `mc2 tokenizer show` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mc2.data.shard_folder import ShardFolder
from mc2.data.shard_reader import read_shard
from mc2.data.tokenizer import Tokenizer
from mc2.records import PackedCaption


@dataclass
class Fertility:
    """Counts over the captions of one language. A piece "spelt" is a byte or unk: a character that the tokenizer has no piece for."""

    num_captions: int = 0
    num_characters: int = 0
    num_pieces: int = 0
    num_spelt: int = 0
    num_cut: int = 0

    def add(self, text: str, ids: list[int], tokenizer: Tokenizer) -> None:
        """Count a caption and its ids (without bos and eos)."""
        self.num_captions += 1
        self.num_characters += len(text)
        self.num_pieces += len(ids)
        self.num_spelt += sum(map(tokenizer.is_spelt, ids))
        self.num_cut += len(ids) + tokenizer.num_special > tokenizer.context_length

    @property
    def pieces_per_caption(self) -> float:
        return self.num_pieces / self.num_captions

    @property
    def characters_per_piece(self) -> float:
        return self.num_characters / max(self.num_pieces, 1)

    @property
    def coverage(self) -> float:
        """Share of the pieces that are not spelt."""
        return 1 - self.num_spelt / max(self.num_pieces, 1)

    @property
    def cut_share(self) -> float:
        """Share of the captions that lose pieces to the context length."""
        return self.num_cut / self.num_captions


def captions(folder: ShardFolder) -> Iterator[PackedCaption]:
    """Every usable caption of a folder of shards, in the order of the shards."""
    for name in folder.names:
        for record in read_shard(folder.path / name):
            yield from record.captions


def fertility(texts: Iterable[PackedCaption], tokenizer: Tokenizer) -> Mapping[str, Fertility]:
    """The counts of each language, by its code ("" where the shards have none)."""
    found: dict[str, Fertility] = {}
    for caption in texts:
        found.setdefault(caption.language, Fertility()).add(caption.text, tokenizer.encode([caption.text])[0], tokenizer)
    return dict(sorted(found.items()))
