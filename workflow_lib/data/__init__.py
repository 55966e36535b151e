"""From a source to verified batches: equal content has an equal digest, whatever the size of the shards.

    work/data/<digest of the settings and of the source files>/
        train-000000000000-000000004096.safetensors   inputs and targets as stored, with the digest of both
        manifest.json                                 written last; the rule's output is a copy of it

source         the `Source` that `open_source` of a data set returns
rare_classes   data.min_class_count
splits         the rows of train, val and test
preparation    writes the shards and the manifest
shard_writer   writes a shard, or keeps an existing one that verifies
tally          totals over the shards: counts, digests, mean and standard deviation
statistics     mean and standard deviation from exact sums
copies         samples that are copies of others, and equal inputs with different targets
opening        opens the source of a data set
in_place       data that is read in place, without a copy in shards
mapped_files   the user's files, of which each part is verified when it is first read
part_digests   digests of these parts; a crash costs only the segments being read
rows           rows of a split as runs
arrays         arrays in a file, mapped
shard          the file format of a shard
manifest       the description of prepared data
names          the table of samples beside the manifest
inputs         samples to predict for
normalisation  stored values to model inputs
loader         batches for a model, from memory or from mapped shards
prefetch       results computed in advance by threads
"""

from workflow_lib.data.inputs import Inputs
from workflow_lib.data.loader import Batch, MappedSplit, Split, load_split, map_split
from workflow_lib.data.manifest import SPLITS, Manifest, ModelSpec
from workflow_lib.data.mapped_files import MappedFiles
from workflow_lib.data.preparation import ensure, prepare, preprocess
from workflow_lib.data.source import (
    IGNORED,
    Feature,
    Source,
    SourceFile,
    content_digest,
    first_true,
    from_arrays,
    numbering_hint,
)
from workflow_lib.data.statistics import merged_in_float32

__all__ = [
    "IGNORED",
    "SPLITS",
    "Batch",
    "Feature",
    "Inputs",
    "Manifest",
    "MappedFiles",
    "MappedSplit",
    "ModelSpec",
    "Source",
    "SourceFile",
    "Split",
    "content_digest",
    "ensure",
    "first_true",
    "from_arrays",
    "load_split",
    "map_split",
    "merged_in_float32",
    "numbering_hint",
    "prepare",
    "preprocess",
]
