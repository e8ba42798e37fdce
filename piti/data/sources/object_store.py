"""What lies below a prefix of an object store, a page or a folder at a time: fsspec's `find` holds all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec

_PAGE_KEYS = 1000  # the most that S3 gives in one answer


def stored_objects(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object below `path`: its path relative to that, and what the store says of it (`size`, an ETag or a time).

    S3 is asked for pages, whatever folders they span; other stores for one folder after the other.
    """
    pages = _s3_pages(fs, path) if hasattr(fs, "call_s3") else _folders(fs, path)
    prefix = path.rstrip("/") + "/"
    for page in pages:
        for name, about in page:
            yield name.removeprefix(prefix), about


def _s3_pages(fs: Any, path: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """`fs`: s3fs's. Objects that stand for a folder (their key ends with `/`) are among them, as in fsspec's `find`."""
    bucket, _, key = path.strip("/").partition("/")
    wanted = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": _PAGE_KEYS, **fs.req_kw}
    while True:
        answer = fs.call_s3("list_objects_v2", **wanted)
        found = answer.get("Contents", [])
        yield [(f"{bucket}/{about['Key']}", {**about, "size": about["Size"]}) for about in found]
        if not answer.get("IsTruncated"):
            return
        wanted["ContinuationToken"] = answer["NextContinuationToken"]


def _folders(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    fs.invalidate_cache(path)
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            children = fs.ls(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        fs.invalidate_cache(folder)  # it would keep what it has listed
        folders = [about["name"] for about in children if about["type"] == "directory"]
        waiting += [name for name in folders if name.rstrip("/") != folder.rstrip("/")]  # some list themselves
        yield [(about["name"], about) for about in children if about["type"] != "directory"]
