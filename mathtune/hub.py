"""Data sets of the Hugging Face Hub: the commit a revision stands for, and the rows of a split in pieces.

The loading is ``datasets``' own, whole (downloaded, then memory-mapped) or streamed. This keeps torch out of it, and
sorts what goes wrong into the user's mistakes and the network's. Retries are the caller's.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import pyarrow as pa

from mathtune.columns import Piece
from mathtune.errors import DataError, MachineError
from mathtune.recipe_source import Source
from mathtune.tables import ROW_GROUP

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_commit(repo: str, revision: str | None) -> str:
    """The commit (40 hex digits) that a branch or tag stands for now; a commit is returned without asking the Hub.

    Raises:
        DataError: the Hub knows no such data set or revision, or does not show it to us.
        MachineError: the Hub cannot be reached.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    with _explained(repo, revision):
        return HfApi().dataset_info(repo, revision=revision).sha


def read_split(source: Source, split: str) -> Iterator[Piece]:
    """The rows of one split of ``source.hub``, at the commit of its revision.

    Raises:
        DataError: the data set, revision, configuration or split does not exist.
        MachineError: the Hub cannot be reached, or stopped half-way.
    """
    commit = resolve_commit(source.hub, source.revision)
    where, first = f"{source.hub}@{commit[:12]}, split {split}", 0
    with _explained(source.hub, source.revision), _configured() as datasets:
        load = partial(datasets.load_dataset, source.hub, source.config, revision=commit, split=split,
                       streaming=source.streaming)
        try:
            rows = load()
        except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid):
            # the client never holds a file that it has kept against its digest: fetch it again
            rows = load(download_mode="force_redownload")
        for table in rows.with_format("arrow").iter(batch_size=ROW_GROUP):
            for batch in table.combine_chunks().to_batches():
                yield Piece(batch, where, first)
                first += batch.num_rows
    if first == 0:
        raise DataError("the split has no rows", where=where)


# Streaming would import torch, to no use here. Where the Hub stops half-way it would read 20 times, each time over the
# client's own five attempts with back-off (about 20 s): nine minutes of silence. The caller's retries are seen.
_SETTINGS = {"TORCH_AVAILABLE": False, "STREAMING_READ_MAX_RETRIES": 1, "STREAMING_READ_RETRY_INTERVAL": 0}


@contextmanager
def _configured() -> Iterator:
    """The module ``datasets`` under ``_SETTINGS``."""
    import datasets
    with patch.multiple(datasets.config, **_SETTINGS):
        yield datasets


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's libraries raise into ours, by whose mistake it is."""
    import datasets
    import huggingface_hub.errors as hub_errors
    from datasets.data_files import EmptyDatasetError
    where = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except (DataError, MachineError):
        raise
    except (hub_errors.RevisionNotFoundError, hub_errors.HFValidationError) as error:
        raise DataError(f"the Hub knows no such data set or revision ({_first_line(error)})", where=where,
                        remedy="check source.hub and source.revision") from error
    except (hub_errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError("the Hub has no such data set, or does not show it without permission", where=where,
                        remedy="check source.hub; for a private or gated one run: hf auth login") from error
    except (EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError, ValueError) as error:
        raise DataError(_first_line(error), where=where,
                        remedy="check source.config, source.train_split and source.test_split") from error
    except Exception as error:  # the libraries below raise many kinds, in several layers, for a network that fails
        raise MachineError(f"reading from the Hub failed ({type(error).__name__}: {_first_line(error)})", where=where,
                           remedy="check the network and run the same command again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
