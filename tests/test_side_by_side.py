"""Checks that work on several threads is the work on one, and leaves torch as it was."""

import pytest
import torch

from hf_sense.clustering import cluster
from hf_sense.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["kmeans", "markov"])
def test_bytes_do_not_depend_on_the_number_of_threads(method: str) -> None:
    """The same corpus would give another dictionary on a machine with more cores."""
    sizes = (400, 400, 10, 290, 120) if method == "kmeans" else (90, 40, 10, 70, 60)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    vectors = torch.randn(int(offsets[-1]), 33, generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(cluster(vectors, offsets, method=method, max_senses=9, max_elements=40_000))
    for other in found[1:]:
        for name in ("centers", "offsets", "labels", "weights", "spread"):
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name


@pytest.mark.parametrize("threads", [1, 3])
def test_every_piece_is_done_once_on_one_thread_without_gradients(threads: int) -> None:
    """A piece that is lost leaves rubbish in an empty tensor; one with many threads takes the others' cores."""
    torch.set_num_threads(threads)
    done, seen = torch.zeros(50), []

    def work(piece: int) -> None:
        done[piece] += 1
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))

    with side_by_side(CPU) as run:
        run(work, range(50))
    assert done.tolist() == [1] * 50
    assert set(seen) == {(1, False)}
    assert torch.get_num_threads() == threads


def test_a_lone_piece_gets_all_threads() -> None:
    """One large problem would leave all cores but one idle."""
    torch.set_num_threads(2)
    seen: list[int] = []
    with side_by_side(CPU) as run:
        run(lambda _: seen.append(torch.get_num_threads()), [0])
    assert seen == [2]


@pytest.mark.parametrize("pieces", [1, 4])
def test_an_error_comes_out_and_the_threads_come_back(pieces: int) -> None:
    """A failure in a thread is lost, or slows down all that comes after it."""
    torch.set_num_threads(2)

    def fail(piece: int) -> None:
        raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 0"), side_by_side(CPU) as run:
        run(fail, range(pieces))
    assert torch.get_num_threads() == 2


def test_inference_mode_reaches_the_threads() -> None:
    """A tensor made in inference mode cannot be written outside of it, where a new thread starts."""
    torch.set_num_threads(2)
    vectors, offsets = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 100, 400])
    plain = cluster(vectors, offsets, max_senses=3)
    with torch.inference_mode():
        inferred = cluster(vectors.clone(), offsets, max_senses=3)
    assert torch.equal(plain.centers, inferred.centers)
