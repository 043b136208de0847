"""How many replicas of a service predict: Ray Serve is asked again and again. Knows no pictures and no HTTP."""

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import Any

from ray import serve

from fracray.prediction.running import cause_of

LOOK_SECONDS = 2.0  # between looks
LOOK_WITHIN = 10.0  # seconds that a look may take
KNOWN_SECONDS = 30.0  # for which a number counts: Ray Serve's controller may start again meanwhile
# States of a replica that answers. A controller that has started again finds its replicas in RECOVERING.
ANSWERING = ("RUNNING", "RECOVERING", "PENDING_MIGRATION")

logger = logging.getLogger(__name__)


class Census:
    """The replicas of one deployment of an application. running: those that answered at the last look."""

    def __init__(self, application: str, deployment: str) -> None:
        self._application, self._deployment = application, deployment
        self.running = 0
        self._seen, self._told = time.monotonic(), False
        self._look: asyncio.Future[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, running: int) -> None:
        """Count from now on, until `stop`; so many run at present."""
        self.running, self._seen = running, time.monotonic()
        self._task = asyncio.create_task(self._watch())

    @property
    def age(self) -> float:
        """Seconds since the number was last known."""
        return time.monotonic() - self._seen

    @property
    def known(self) -> bool:
        """Whether the number is a recent one."""
        return self.age <= KNOWN_SECONDS

    async def _watch(self) -> None:
        while True:
            try:
                self.running = await self._count()
            except Exception as error:  # whatever it is, nobody else would notice that the counting has ended
                self._tell(error)
            else:
                self._seen = time.monotonic()
                if self._told:
                    logger.warning(f"it is known again how many replicas predict: {self.running}")
                self._told = False
            await asyncio.sleep(LOOK_SECONDS)

    async def _count(self) -> int:
        """How many answer; none where Ray Serve does not have the application any more.

        Where a new configuration cannot be built, Ray Serve names no deployments, and those that ran go on.
        """
        if self._look is None:
            self._look = _in_thread()
        done, _ = await asyncio.wait([self._look], timeout=LOOK_WITHIN)
        if not done:  # it goes on: another look would hang beside it
            raise TimeoutError("Ray Serve does not answer")
        look, self._look = self._look, None
        application = look.result().applications.get(self._application)
        if application is None:
            return 0
        deployment = application.deployments.get(self._deployment)
        if deployment is None:
            return self.running
        return sum(deployment.replica_states.get(state, 0) for state in ANSWERING)

    def _tell(self, error: Exception) -> None:
        if self.known or self._told:
            return
        self._told = True
        logger.error(
            f"for {self.age:.0f} s it is not known how many replicas predict ({type(error).__name__}: "
            f"{cause_of(error)}); pictures are still sent to them, and /ready answers 503 until it is known again"
        )

    def stop(self) -> None:
        """Count no longer."""
        for one in (self._task, self._look):
            if one is not None:
                one.cancel()


def _in_thread() -> "asyncio.Future[Any]":
    """What Ray Serve says, from a thread that holds up no end of the process: where Ray hangs, so does the thread."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def give(answer: Any, error: Exception | None) -> None:
        if found.done():  # nobody waits for it any more
            return
        if error is None:
            found.set_result(answer)
        else:
            found.set_exception(error)

    def look() -> None:
        answer: Any = None
        problem: Exception | None = None
        try:
            answer = serve.status()
        except Exception as error:
            problem = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(give, answer, problem)

    threading.Thread(target=look, name="fracray-census", daemon=True).start()
    return found
