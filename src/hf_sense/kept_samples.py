"""A dictionary's sample, kept with its vectors: new text can be added to the dictionary later as if it had been there at once.

It neither draws nor clusters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_sense.files import write_text
from hf_sense.ranks import Ranks
from hf_sense.sample_columns import sample_of, tensors_of
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.sampling import SAMPLE_COLUMNS, OccurrenceSample
from hf_sense.segments import Piece, read_checked, write_checked
from hf_sense.unfinished import UnfinishedBuild

JSON_NAME = "sense_samples.json"
_SAMPLE_NAME = "sample.safetensors"
_ROWS_A_FILE = 2**26
_VERSION = 1


@dataclass(frozen=True)
class KeptSample:
    """What ``keep_sample`` wrote.

    Attributes:
        folder: where it lies.
        sample: its places; the positions of texts that are gone mean nothing but that a vector is there.
        identity: what a build must share with it.
        corpus: what it was drawn from.
        sha256: of the files' checksums.
    """

    folder: Path
    sample: OccurrenceSample
    identity: dict[str, Any]
    corpus: dict[str, Any]
    sha256: str

    @classmethod
    def open(cls, folder: str | Path, ranks: Ranks) -> KeptSample:
        """Reads the sample; its vectors are read when they are needed.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if a file is damaged.
        """
        path = Path(folder)
        if not (path / JSON_NAME).is_file():
            raise FileNotFoundError(
                f"{folder} holds no samples: it has no {JSON_NAME}. build_dictionary(..., keep_samples=folder) writes them."
            )
        try:
            about = json.loads((path / JSON_NAME).read_text(encoding="utf-8"))
            identity, corpus, version, rows = about["identity"], about["corpus"], about["format_version"], about["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path / JSON_NAME} is damaged ({error!r}). Build with keep_samples again.") from error
        if version != _VERSION:
            raise ValueError(f"{path / JSON_NAME} has format version {version}, and this hf_sense reads {_VERSION}.")
        found = read_checked(path / _SAMPLE_NAME, keep=True)
        if found is None or len(found["token_ids"]) != rows:
            raise ValueError(f"{path / _SAMPLE_NAME} is missing or damaged. Build with keep_samples again.")
        sample = sample_of([found[name].clone() for name in SAMPLE_COLUMNS])
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return cls(path, sample, identity, corpus, digest)

    @property
    def texts(self) -> int:
        """How many texts it was drawn from."""
        return int(self.corpus["texts"])

    def check(self, identity: dict[str, Any]) -> None:
        """Raises ``ValueError`` if a build's vectors or places would not be of the same kind."""
        changed = {
            name: (self.identity.get(name), value)
            for name, value in identity.items()
            if self.identity.get(name) != value
        }
        if changed:
            raise ValueError(
                f"The samples in {self.folder} are of another kind; they differ in (samples, now): {changed}. Give the build the "
                "same teacher and the same settings."
            )

    def corpus_with(self, added: dict[str, Any]) -> dict[str, Any]:
        """What the metadata of a grown dictionary says of its corpus."""
        digest = hashlib.sha256(f"{self.corpus['sha256']} {added['sha256']}".encode()).hexdigest()
        return {
            "name": added["name"]
            if added["name"] == self.corpus["name"]
            else f"{self.corpus['name']} + {added['name']}",
            "split": added["split"] if added["split"] == self.corpus["split"] else None,
            "texts": self.corpus["texts"] + added["texts"],
            "tokens": self.corpus["tokens"] + added["tokens"],
            "sha256": digest,
        }

    def put_into(self, work: UnfinishedBuild, merged: OccurrenceSample) -> None:
        """Adds the vectors of those places that the merged sample has kept."""
        number = self._new_rows(merged)
        begin = 0
        for path in sorted(self.folder.glob("vectors-*.safetensors")):
            vectors = read_checked(path, keep=True)
            if vectors is None:
                raise ValueError(f"{path} is damaged. Build with keep_samples again.")
            own = number[begin : begin + len(vectors["vectors"])]
            begin += len(own)
            rows = np.flatnonzero(own >= 0)
            if work.whole is not None:
                work.whole[torch.from_numpy(own[rows])] = vectors["vectors"][torch.from_numpy(rows)]
            elif work.shared or work.ranks.main:
                work.vectors.pieces.append(_Chosen(path, own[rows], rows))
        if begin != len(number):
            raise ValueError(
                f"{self.folder} holds {begin:,} vectors for {len(number):,} places. Build with keep_samples again."
            )

    def _new_rows(self, merged: OccurrenceSample) -> np.ndarray:
        """For each row the one it has in the merged sample, -1 if it was crowded out; what a token keeps are its lowest."""
        vocabulary = np.arange(len(merged.totals) + 1)
        before = np.searchsorted(self.sample.token_ids, vocabulary)
        old = merged.texts < self.texts
        tokens = merged.token_ids[old]
        rank = np.arange(len(tokens)) - np.searchsorted(tokens, vocabulary)[tokens]
        found = np.full(len(self.sample.token_ids), -1, np.int64)
        found[before[tokens] + rank] = np.flatnonzero(old)
        return found


class _Chosen(Piece):
    """Some rows of a file of vectors, by their new numbers."""

    def __init__(self, path: Path, numbers: np.ndarray, rows: np.ndarray) -> None:
        super().__init__(torch.zeros(0, dtype=torch.int64), path.name, path)
        self._rows, self._own = torch.from_numpy(numbers), torch.from_numpy(rows)

    def open(self) -> dict[str, torch.Tensor]:
        return {"rows": self._rows, "vectors": super().open()["vectors"][self._own]}


def keep_sample(
    folder: Path,
    sample: OccurrenceSample,
    vectors: SampledVectors,
    identity: dict[str, Any],
    corpus: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Writes a sample and its vectors to a folder, which takes the place of an older one when all is there.

    Args:
        folder: new, empty, or that of older samples.
        sample: the places.
        vectors: theirs, ``(n, dim)``.
        identity: what a build on it must share.
        corpus: what it was drawn from.
        ranks: all call it; the first writes.
    """
    made: Path | None = None
    if ranks.main:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        made.chmod(0o755)
        columns = dict(zip(SAMPLE_COLUMNS, tensors_of(sample), strict=True))
        write_checked(made / _SAMPLE_NAME, columns)
    step = max(1, _ROWS_A_FILE // (4 * vectors.dim))
    for number, rows in enumerate(_steps(len(vectors), step)):
        held = vectors.ranges([rows] + [None] * (ranks.count - 1))
        if made is not None:
            write_checked(made / f"vectors-{number:06d}.safetensors", {"vectors": held})
    if made is not None:
        about = {
            "format_version": _VERSION,
            "rows": len(vectors),
            "dim": vectors.dim,
            "identity": identity,
            "corpus": corpus,
        }
        write_text(made / JSON_NAME, json.dumps(about, indent=2) + "\n")
        _replace(made, folder)
    ranks.wait()


def check_keep(folder: str | Path) -> None:
    """Raises ``ValueError`` if the folder holds something else than samples."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"keep_samples should be a folder, but {folder} is a file.")
    if path.is_dir() and any(path.iterdir()) and not (path / JSON_NAME).is_file():
        raise ValueError(f"keep_samples should be a new or empty folder, or one of samples, but {folder} is not.")


def _replace(made: Path, folder: Path) -> None:
    old = None
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.rename(old / "before")
    made.rename(folder)
    if old is not None:
        shutil.rmtree(old)


def _steps(number: int, step: int) -> Iterator[slice]:
    for begin in range(0, number, step):
        yield slice(begin, min(number, begin + step))
