"""Pictures of many requests in one forward pass. Knows nothing of pictures, processes or HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fracray.errors import RunError

Run = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
Waiting = list[tuple[Any, asyncio.Future[Any]]]


class Batcher:
    """Collects items until there are `most`, or the first has waited `wait` seconds, and runs them at once.

    It waits only while `coming()` says that more are on their way: a single client does not wait at all. `at_once`
    batches are in work at a time; meanwhile the next ones grow.

    Where `run` raises RunError, one of the items may be at fault: they are run one at a time, so that the others get
    their results. After `seconds` of that no more are begun.
    """

    def __init__(
        self, run: Run, most: int, wait: float, at_once: int, coming: Callable[[], bool], seconds: float
    ) -> None:
        self._run, self._most, self._wait, self._coming, self._seconds = run, most, wait, coming, seconds
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._collecting = asyncio.Lock()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(at_once)]

    async def __call__(self, item: Any) -> Any:
        """What `run` returns for this item, or raises for it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def _work(self) -> None:
        while True:
            async with self._collecting:  # one batch grows at a time
                batch = await self._collect()
            error = await self._answer(batch)
            if isinstance(error, RunError) and len(batch) > 1:
                error = await self._one_by_one(batch, error)
            if error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    async def _one_by_one(self, batch: Waiting, error: Exception) -> Exception:
        """The error of the items that are not answered after that: their batch's, or what ended the attempt."""
        end = time.monotonic() + self._seconds
        for item, future in batch:
            if future.done():  # nobody waits for it any more
                continue
            if time.monotonic() >= end:
                break
            own = await self._answer([(item, future)])
            if own and not isinstance(own, RunError):
                return own  # what runs them is lost
            if own and not future.done():
                future.set_exception(own)
        return error

    async def _answer(self, batch: Waiting) -> Exception | None:
        """Run the items and hand out their results; the error where there are none."""
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:
            return error
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
        return None

    async def _collect(self) -> Waiting:
        batch = [await self._queue.get()]
        end = time.monotonic() + self._wait
        while len(batch) < self._most:
            if self._queue.empty():
                left = end - time.monotonic()
                if left <= 0 or not self._coming():
                    break
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            else:
                batch.append(self._queue.get_nowait())
        return [(item, future) for item, future in batch if not future.done()] or batch

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
