"""What is in a shard's tar: samples out of their bytes, and the names of shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator

from webdataset.tariterators import group_by_keys, tar_file_expander


def read_in_order(spans: Iterable[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of each sample, by the webdataset package. `spans`: the bytes of the samples in their tar."""
    tars = ({"url": "", "stream": io.BytesIO(span)} for span in spans)
    for sample in group_by_keys(tar_file_expander(tars)):
        yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}


def split_members(span: bytes) -> dict[str, bytes]:
    """The members of one sample from its bytes in the tar: suffix to content. Twice as fast as `read_in_order`."""
    members: dict[str, bytes] = {}
    position = 0
    while position < len(span):
        header = tarfile.TarInfo.frombuf(span[position : position + tarfile.BLOCKSIZE], "utf-8", "strict")
        begin = position + tarfile.BLOCKSIZE
        members[header.name.partition(".")[2]] = span[begin : begin + header.size]
        position = begin + header.size + -header.size % tarfile.BLOCKSIZE
    return members


def shard_name(split: str, number: int) -> str:
    """`train-000003.tar`."""
    return f"{split}-{number:06d}.tar"


def shard_split(name: str) -> str:
    """The split that a shard's name tells."""
    return name.rsplit("-", 1)[0]


def names_of(shards: Iterable[str], split: str) -> list[str]:
    """Those of `shards` that belong to a split, in order of number."""
    return sorted(name for name in shards if shard_split(name) == split)
