"""How far each rank has drawn its sample, kept from time to time: to draw from a large corpus takes hours.

A rank's state is one piece: the sample of some blocks, whose numbers it bears. Any number of ranks goes on from the pieces of
any other number.
"""

from __future__ import annotations

import time

from hf_sense.sample_columns import sample_of, tensors_of
from hf_sense.sampling import SAMPLE_COLUMNS, OccurrenceSampler
from hf_sense.segments import Piece
from hf_sense.unfinished import UnfinishedBuild

_SECONDS_BETWEEN_SAVES = 20.0
# A save may take this share of the time.
_SHARE = 0.1


class Drawn:
    """This rank's state. Without a folder it keeps nothing.

    Args:
        work: where it lies. All ranks make it at once.

    Attributes:
        covered: the blocks that ranks have drawn from already, whichever they are.
    """

    def __init__(self, work: UnfinishedBuild) -> None:
        self._pieces, self._ranks = work.drawn, work.ranks
        self._keeps = work.folder is not None
        seen = self._ranks.gather([(piece.name, piece.numbers.tolist()) for piece in self._pieces.pieces])
        self._own: list[Piece] = []
        self._numbers: list[int] = []
        self.covered: set[int] = set()
        dealt = [0] * len(seen)
        numbers = {name: own for rank in seen for name, own in rank}
        # The longest first: a save that was cut off before it removed the one that it replaces holds all of that.
        for name in sorted(numbers, key=lambda name: (-len(numbers[name]), name)):
            holders = [rank for rank, own in enumerate(seen) if any(name == other for other, _ in own)]
            wanted = self.covered.isdisjoint(numbers[name])
            # Ranks that see the same folder share its pieces out; what is of no use the first of them removes.
            owner = min(holders, key=lambda rank: dealt[rank]) if wanted else holders[0]
            if owner == self._ranks.rank:
                piece = next(piece for piece in self._pieces.pieces if piece.name == name)
                if wanted:
                    self._own.append(piece)
                    self._numbers += numbers[name]
                else:
                    self._pieces.remove(piece)
            if wanted:
                dealt[owner] += 1
                self.covered.update(numbers[name])
        self._next = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def begin(self, sampler: OccurrenceSampler) -> None:
        """Gives the sampler what was drawn before."""
        for piece in self._own:
            tensors = piece.open()
            sampler.take(sample_of([tensors[name].clone() for name in SAMPLE_COLUMNS]))

    def drew(self, number: int, sampler: OccurrenceSampler) -> None:
        """Notes a block that the sampler has taken whole, and saves if it is time to."""
        self._numbers.append(number)
        begin = time.monotonic()
        if not self._keeps or begin < self._next:
            return
        tensors = dict(zip(SAMPLE_COLUMNS, tensors_of(sampler.result()), strict=True))
        self._pieces.add(self._numbers, tensors)
        for piece in self._own:
            self._pieces.remove(piece)
        self._own = [self._pieces.pieces[-1]]
        now = time.monotonic()
        self._next = now + max(_SECONDS_BETWEEN_SAVES, (now - begin) / _SHARE)
