"""Read, decode and process images in worker processes, in order.

A map-style data set of torch: a worker takes numbers and gives arrays. Where processes can't be
started safely (another thread is running, or the system can't fork), threads do it: Pillow decodes
without the interpreter's lock.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from numpy.typing import NDArray

from fedvlm.errors import DataError

Work = Callable[[int], NDArray]
_FEW = 256  # below, starting processes takes longer than the work
_AHEAD = 64  # arrays that threads are ahead of who takes them
_TIMEOUT = 300.0  # seconds that a batch of images may take before its worker counts as stuck


class MapDataset:
    """A map-style data set: item i is `work(items[i])`, or the error that it met."""

    def __init__(self, work: Work, items: Sequence[int]) -> None:
        self._work, self._items = work, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> NDArray | str:
        try:
            return self._work(self._items[index])
        except DataError as error:  # torch would add a traceback to its text
            return str(error)


def _raised(found: NDArray | str) -> NDArray:
    if isinstance(found, str):
        raise DataError(found)
    return found


def _as_they_are(batch: list) -> list:
    return batch


def worker_processes(wanted: int | None, count: int) -> int:
    """Return how many processes to start for `count` items; 0 for threads.

    Args:
        wanted: What was asked for; None for one a core where that is safe and worth while.
        count: How many items there are.
    """
    safe = (
        "fork" in multiprocessing.get_all_start_methods()
        and threading.current_thread() is threading.main_thread()
    )
    if not safe or wanted == 0:
        return 0
    if wanted is None:
        return min(16, os.cpu_count() or 1) if count >= _FEW else 0
    return min(wanted, count)


def each(work: Work, items: Sequence[int], workers: int | None = None) -> Iterator[NDArray]:
    """Yield `work` of each item, in order.

    Args:
        work: Reads and processes one image.
        items: Numbers of images.
        workers: Processes; 0 for threads, None for what suits.

    Raises:
        DataError: The first that `work` met, in the order of the items; or a worker died.
    """
    processes = worker_processes(workers, len(items))
    data = MapDataset(work, items)
    if processes:
        from torch.utils.data import DataLoader

        loader = DataLoader(
            data,  # pyright: ignore[reportArgumentType]
            batch_size=16,
            num_workers=processes,
            collate_fn=_as_they_are,
            multiprocessing_context="fork",
            timeout=_TIMEOUT,
        )
        try:
            for batch in loader:
                yield from map(_raised, batch)
        except RuntimeError as error:
            raise DataError(
                f"a worker that prepares images stopped ({' '.join(str(error).split())[:200]}); "
                "with too little memory, use fewer: loaders = 1"
            ) from error
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        waiting = []
        for index in range(len(data)):
            waiting.append(pool.submit(data.__getitem__, index))
            if len(waiting) >= _AHEAD:
                yield _raised(waiting.pop(0).result())
        for one in waiting:
            yield _raised(one.result())
