"""Rows about shards: packing against webdataset's ShardWriter, shuffled reading against sequential webdataset."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.compat import WebDataset
from webdataset.writer import ShardWriter

from orchestration.bench.material import Material
from orchestration.bench.row import Row
from orchestration.bench.timing import in_turns
from shards.index import build_index, write_index
from shards.manifest import AnnotationEntry, DatasetManifest, ShardEntry, write_manifest
from shards.order import SampleOrder
from shards.pack import PackedShard, pack_shard
from shards.plan import PlannedSample, plan_shards
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.sampletar import pack_samples, write_sample
from talkinghead.schema import MEDIA_MEMBERS, SampleIndex, media_shard_name

_SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Copies:
    """Copies of the material's media under new keys, so that there is enough to pack and to read."""

    storage: Storage
    samples: list[PlannedSample]
    contents: dict[str, dict[str, bytes]]
    """Key → {suffix: content}, in memory."""
    plan: list[list[PlannedSample]]
    """Samples of each shard, in order."""

    @property
    def size(self) -> int:
        """Size of all members in bytes."""
        return sum(len(content) for members in self.contents.values() for content in members.values())


def copy_material(material: Material, folder: Path, wanted_bytes: int) -> Copies:
    """Write unit tars of one sample each, until they have so many bytes together.

    Args:
        material: Samples to copy.
        folder: Empty folder for the tars, later also for the shards.
        wanted_bytes: Least size of all members together.
    """
    storage = Storage(folder)
    samples: list[PlannedSample] = []
    contents: dict[str, dict[str, bytes]] = {}
    size = 0
    originals = [
        (sample, {suffix: material.member(sample, suffix) for suffix in MEDIA_MEMBERS}) for sample in material.samples
    ]
    # All samples in turn, so that the copies have the material's mix of sizes.
    while size < wanted_bytes:
        for sample, members in originals:
            key = f"{sample.key[:60]}-{len(samples):06d}"
            file = f"units/{key}.tar"
            storage.write(file, pack_samples([(key, members)]))
            places = write_sample(io.BytesIO(), 0, key, members)
            samples.append(PlannedSample.of_members(key=key, file=file, members=places, num_frames=sample.num_frames))
            contents[key] = members
            size += sum(map(len, members.values()))
    # Dealt out to shards as the pack job does it.
    by_key = {sample.key: sample for sample in samples}
    keys = plan_shards({sample.key: sample.length for sample in samples}, target_bytes=_SHARD_BYTES)
    return Copies(storage, samples, contents, [[by_key[key] for key in shard] for shard in keys])


def pack_row(copies: Copies, repeats: int) -> Row:
    """Compare our packing (read, check, copy, hash, sync, rename) with ShardWriter, fed with samples from memory."""

    def ours(_: int) -> None:
        pack(copies)

    def baseline(turn: int) -> None:
        folder = Path(copies.storage.uri) / f"webdataset{turn}"
        folder.mkdir()
        write_with_webdataset(copies, folder)

    costs = in_turns({"ours": ours, "webdataset": baseline}, repeats)
    mebibytes = copies.size / 2**20
    return Row(
        name="pack",
        ours=mebibytes / costs["ours"].wall,
        baseline=mebibytes / costs["webdataset"].wall,
        unit="MiB/s",
        better="higher",
        goal=0.6,
        note=f"{len(copies.samples)} samples, {mebibytes:.0f} MiB: read from unit tars, headers checked, hashed,"
        " fsynced, renamed; against webdataset.ShardWriter fed from memory, which does none of that",
    )


def pack(copies: Copies) -> list[PackedShard]:
    """Pack all media shards, up to their final names."""
    packed = []
    for number, samples in enumerate(copies.plan):
        with copies.storage.staged(media_shard_name(number)) as sink:
            packed.append(pack_shard(copies.storage, samples, sink))
    return packed


def write_with_webdataset(copies: Copies, folder: Path) -> None:
    """Write the same samples in the same order through webdataset."""
    pattern = str(folder / "clips-%06d.tar")
    with ShardWriter(pattern, maxsize=_SHARD_BYTES, verbose=0, encoder=False) as writer:
        for shard in copies.plan:
            for sample in shard:
                writer.write({"__key__": sample.key, **copies.contents[sample.key]})


def read_row(copies: Copies, repeats: int) -> Row:
    """Compare our reader on a full shuffle with webdataset, which reads from the first byte to the last."""
    # A data set of the copies, all of whose samples are used.
    write_data_set(copies, pack(copies))
    reader = ShardReader(copies.storage, split=None)
    order = SampleOrder(len(reader), seed=0)
    urls = [str(Path(copies.storage.uri) / media_shard_name(number)) for number in range(len(copies.plan))]

    # Both sides must have seen every byte: the sums say so.
    def ours(turn: int) -> None:
        assert sum(_touch(reader[i].members(*MEDIA_MEMBERS)) for i in order.permutation(turn).tolist()) == copies.size

    def baseline(_: int) -> None:
        assert sum(_touch(sample) for sample in read_with_webdataset(urls)) == copies.size

    costs = in_turns({"ours": ours, "webdataset": baseline}, repeats)
    return Row(
        name="read_shuffled",
        ours=len(reader) / costs["ours"].wall,
        baseline=len(reader) / costs["webdataset"].wall,
        unit="samples/s",
        better="higher",
        goal=1.2,
        note=f"{len(reader)} samples of {copies.size / len(reader) / 2**20:.2f} MiB, all media members as bytes, one"
        " process, files in the page cache: every epoch fully shuffled; against webdataset.WebDataset, unshuffled",
    )


def read_with_webdataset(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read samples through webdataset, in the order of the tars."""
    yield from WebDataset(list(urls), shardshuffle=False, empty_check=False)


def _touch(sample: Any) -> int:
    """Size of a sample's media members in bytes, which reads them all."""
    return sum(len(sample[suffix]) for suffix in MEDIA_MEMBERS)


def write_data_set(copies: Copies, packed: Sequence[PackedShard]) -> None:
    """Write index and `DATASET.json` of the packed copies, so that the reader opens them like any data set."""

    # Where every sample is, and nothing else: no groups, no scores, all in one split.
    def rows() -> Iterator[SampleIndex]:
        for number, shard in enumerate(packed):
            for ordinal, sample in enumerate(shard.samples):
                yield SampleIndex(
                    key=sample.key, clip_key=sample.key, dataset="folder", shard=number, ordinal=ordinal,
                    num_frames=sample.num_frames, split="train", split_group=sample.key, person=None, licence="bench",
                    keep=True, reason=None, reason_score=None, media=sample.members,
                )  # fmt: skip

    # A version without columns: the reader is only asked for media.
    index = build_index("bench", rows())
    path, sha256 = write_index(copies.storage, index)
    entry = AnnotationEntry(
        version="bench",
        index=path,
        index_sha256=sha256,
        shards=[],
        samples=len(index),
        kept=len(index),
        splits={"train": len(index)},
    )
    media = [
        ShardEntry(
            name=media_shard_name(number),
            sha256=shard.sha256,
            size=shard.size,
            samples=len(shard.samples),
            frames=shard.num_frames,
        )
        for number, shard in enumerate(packed)
    ]
    manifest = DatasetManifest(
        datasets=["folder"],
        counts={"samples": len(index)},
        licences={"bench": len(index)},
        tool_versions={},
        plan_hash="",
        media=media,
        annotations=[entry],
    )
    write_manifest(copies.storage, manifest)
