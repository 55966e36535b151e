"""A data set becomes checksummed shards and a manifest: equal content has an equal digest, however it was cut.

    work/data/<digest of settings and source files>/
        train-000000000000-000000004096.safetensors   inputs and targets as stored, with the digest of both
        manifest.json                                 written last; a rule's output is a copy of it

source        what a data set gives
splits        which of its rows are train, val and test
preparation   the shards are made: a crash costs those being written, what verifies is kept
store         a shard on disk
statistics    mean and deviation, exact
manifest      all that is known of prepared data
loading       samples ready for a model, batch by batch
"""

from workflow_lib.data.loader import Batch, MappedSplit, Split, load_split, map_split, normalise
from workflow_lib.data.manifest import PREPARE_AGAIN, SPLITS, Manifest, ModelSpec, Shard, SplitSummary
from workflow_lib.data.preparation import ensure, prepare, preprocess
from workflow_lib.data.shard import ShardContent, read_shard
from workflow_lib.data.source import (
    Feature,
    Source,
    SourceFile,
    content_digest,
    first_true,
    from_arrays,
    merged_in_float32,
    numbering_hint,
)
from workflow_lib.data.splits import Part, assign, grouped_split, stratified_split
from workflow_lib.data.statistics import Moments, exact_sum

__all__ = [
    "PREPARE_AGAIN",
    "SPLITS",
    "Batch",
    "Feature",
    "Manifest",
    "MappedSplit",
    "ModelSpec",
    "Moments",
    "Part",
    "Shard",
    "Source",
    "SourceFile",
    "Split",
    "SplitSummary",
    "ShardContent",
    "assign",
    "content_digest",
    "ensure",
    "exact_sum",
    "first_true",
    "from_arrays",
    "grouped_split",
    "load_split",
    "map_split",
    "merged_in_float32",
    "normalise",
    "numbering_hint",
    "prepare",
    "preprocess",
    "read_shard",
    "stratified_split",
]
