"""Samples of existing WebDataset tars: files of one key, told apart by what follows the first dot of their name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from piti import storage
from piti.config import DataConfig, WebdatasetSourceConfig
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.archives import TarSpan, is_archive, tar_members
from piti.data.sources.files import FileItem, Reading
from piti.data.sources.listing import Entry, stored_version
from piti.data.sources.members import Member, Members
from piti.data.sources.names import draw_validation, is_hidden, pairing_name, safe_key
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 3
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class _Sample:
    """The members of one key, by suffix; `repeated` is a suffix that came twice."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    repeated: str | None = None


class WebdatasetSource:
    """See WebdatasetSourceConfig. Every key of every tar is an item."""

    def __init__(self, config: WebdatasetSourceConfig, data: DataConfig) -> None:
        self._config, self._data = config, data

    def _tars(self, split: Split) -> list[str]:
        place = self._config.train if split == "train" else self._config.validation
        return [] if place is None else expand_tars(place)

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        tars = [tar for split in splits for tar in self._tars(split)] or self._tars("train")
        listed = [f"{tar}|{stored_version(tar)}" for tar in tars]
        return storage.sha256_bytes("\n".join([str(_FORMAT_VERSION), *listed]).encode())

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        problems: list[PitiError] = []
        wants_normals = self._config.normals is not None
        if self._data.modality != "sketch" and self._config.condition is None:
            problem = f"data.source has no condition, which modality {self._data.modality} needs"
            problems.append(DataError(problem, "set data.source.condition to its suffix, seg.png say"))
        if self._data.modality != "geometry" and wants_normals:
            problem = f"data.source.normals does nothing with modality {self._data.modality}"
            problems.append(DataError(problem, "leave it out"))
        train, validation = self._config.train, self._config.validation
        for place in dict.fromkeys(train if split == "train" else validation or train for split in splits):
            problems += self._problems_at(place)
        return problems

    def _problems_at(self, place: str) -> Iterator[PitiError]:
        tars = expand_tars(place)
        missing = [tar for tar in tars if not storage.exists(tar)]
        if not tars or missing:
            what = f"there is no {missing[0]}" if missing else f"there are no tars in {place}"
            yield DataError(what, "correct data.source.train or data.source.validation")
            return
        try:
            found = {suffix for sample in _samples(tars[0], stored_version(tars[0])) for suffix in sample.members}
        except PitiError as error:
            yield error
            return
        listed = ", ".join(sorted(found)) or "nothing"
        if not found & set(self._config.images):
            yield DataError(f"{tars[0]} holds no pictures, only {listed}", "name their suffix in data.source.images")
        for name in ("condition", "normals"):
            suffix = getattr(self._config, name)
            if suffix is not None and suffix not in found:
                yield DataError(f"{tars[0]} holds no {suffix}, only {listed}", f"correct data.source.{name}")

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of tars, and of keys in each. Raises DataError where a tar is missing or not whole."""
        tars = self._tars("train" if self._config.validation is None else split)
        every = [tar for part in SPLITS for tar in self._tars(part)]
        common = posixpath.commonprefix([f"{tar.rpartition('/')[0]}/" for tar in every]).rpartition("/")[0]
        is_drawn: Callable[[str], bool] | None = None
        if self._config.validation is None:
            names = (name for tar in tars for name, _ in _named_samples(tar, common))
            is_drawn = draw_validation(names, self._config.validation_share)
        place = () if is_drawn is not None else (split,)
        for tar in tars:
            version = stored_version(tar)
            for name, sample in _named_samples(tar, common):
                if is_drawn is None or is_drawn(name) == (split == "validation"):
                    yield self._item(tar, name, sample, version, place)

    def _item(self, tar: str, name: str, sample: _Sample, version: str, place: tuple[str, ...]) -> FileItem:
        config = self._config
        image = next((sample.members[suffix] for suffix in config.images if suffix in sample.members), None)
        condition, normals = (
            None if suffix is None else sample.members.get(suffix) for suffix in (config.condition, config.normals)
        )
        fault = None
        if image is None:
            fault = "no picture among " + ", ".join(sorted(sample.members))
        elif sample.repeated is not None:
            fault = f"two files {sample.key}.{sample.repeated}"
        elif config.condition is not None and condition is None:
            fault = f"no {config.condition}"
        elif config.normals is not None and normals is None:
            fault = f"no {config.normals}"
        used = [member for member in (image, condition, normals) if member is not None]
        fault = fault or next((f"{member.path} is {member.fault}" for member in used if member.fault is not None), None)
        entries = [Entry(version, member.size_bytes, member.version) for member in used]
        return FileItem.of(
            safe_key(f"{name}.tar", *place), name, Reading.of(self._data, config.depth_unit_metres), entries, fault=fault,
            image=_span(image), condition=_span(condition), normals=_span(normals),
        )  # fmt: skip


def expand_tars(place: str) -> list[str]:
    """The tars that a place names, in order: a folder's, or one for each number of `{000..146}`, or the one."""
    match = _RANGE.search(place)
    if match is not None:
        first, last = match.group(1), match.group(2)
        numbers = range(int(first), int(last) + 1)
        names = [f"{place[: match.start()]}{number:0{len(first)}d}{place[match.end() :]}" for number in numbers]
        return [tar for name in names for tar in expand_tars(name)]
    if is_archive(place):
        return [place]
    names = storage.list_names(place)
    return [storage.join(place, name) for name in names if is_archive(name) and not name.endswith(".zip")]


def _named_samples(tar: str, common: str) -> Iterator[tuple[str, _Sample]]:
    """The samples of a tar, each with its name in the dataset: keys may repeat in other tars."""
    short = tar.removeprefix(common).lstrip("/")
    for sample in _samples(tar, stored_version(tar)):
        yield f"{short}/{sample.key}", sample


@lru_cache(maxsize=1)
def _samples(tar: str, version: str) -> list[_Sample]:
    """Of one tar at a time: a set of them has millions. `version`: a tar that changes is listed anew."""
    members = list(tar_members(tar))
    files = Members(members).files
    paths = [member.path for member in members if member.path in files]
    behind_links = sorted(files.keys() - set(paths))
    samples: dict[str, _Sample] = {}
    for path in (*paths, *behind_links):
        if is_hidden(path):
            continue
        folder, slash, base = path.rpartition("/")
        name, _, suffix = base.partition(".")
        key = pairing_name(f"{folder}{slash}{name}")
        sample = samples.setdefault(key, _Sample(key))
        if suffix.lower() in sample.members:
            sample.repeated = suffix.lower()
        sample.members[suffix.lower()] = files[path]
    return list(samples.values())


def _span(member: Member | None) -> TarSpan | None:
    return None if member is None else member.place
