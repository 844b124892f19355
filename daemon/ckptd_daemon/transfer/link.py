"""The way to one object's bytes: where they are by now, and whether the plain client can go there."""

from __future__ import annotations

import functools
import logging

import anyio

from ckptd_daemon.sources.http import refusal
from ckptd_daemon.sources.source import ChangedError, Endpoint, Object
from ckptd_daemon.transfer.abilities import STRIKES
from ckptd_daemon.transfer.means import Means
from ckptd_daemon.transfer.progress import Gauge
from ckptd_daemon.transfer.retry import patiently
from ckptd_daemon.transfer.stream import NotFastError, RefusedError
from ckptd_daemon.transfer.work import Work

logger = logging.getLogger(__name__)


class Link:
    """An address that may expire while a flight uses it."""

    def __init__(
        self, means: Means, obj: Object, endpoint: Endpoint, work: Work, gauge: Gauge
    ) -> None:
        self.endpoint = endpoint
        self.is_fast = True
        """Until the origin does what only the general path can read."""
        self._means = means
        self._object = obj
        self._work = work
        self._gauge = gauge
        self._refreshing = anyio.Lock()
        self._left_at_refresh = -1
        self._strikes = 0  # odd replies in a row

    @property
    def is_braked(self) -> bool:
        """Whether the host wants to be left alone."""
        return self._means.brakes.left_s(self.endpoint.url) > 0

    def answered(self) -> None:
        """Have had an answer as it should be."""
        self._strikes = 0

    def answered_oddly(self, error: NotFastError) -> None:
        """Have had one that this path cannot read; raises it if that is the origin's way."""
        self._strikes += 1
        if self._strikes >= STRIKES:
            raise error
        logger.info("%s: an odd reply: %s", self._object.title, error)

    async def refresh(self, error: RefusedError, refused: Endpoint) -> None:
        """Ask the source where the bytes are by now; one asks for all streams.

        Raises `ChangedError`, `NotFastError` or one of our typed errors.
        """
        async with self._refreshing:
            if self.endpoint is not refused:
                return
            left_bytes = self._work.left_bytes
            if left_bytes == self._left_at_refresh:
                raise refusal(error.status, {}, self._object.title) from error
            self.endpoint = await self._found()
            self._left_at_refresh = left_bytes

    async def _found(self) -> Endpoint:
        obj, means = self._object, self._means
        stat = functools.partial(means.source.stat, obj.url, only_public=obj.is_public)
        retries = means.config.retries
        fresh = await patiently(
            stat, obj.url, obj.title, retries, self._gauge, means.brakes, means.hosts
        )
        if fresh.version != obj.version:
            raise ChangedError("the origin has another version by now")
        if fresh.direct is None:
            self._strikes = STRIKES
            raise NotFastError("a proxy by now")
        return fresh.direct
