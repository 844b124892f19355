"""What the daemon is built of, in which order it starts, and how it ends."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ckptd_daemon import __version__
from ckptd_daemon.config import Config
from ckptd_daemon.door.descriptors import Descriptors
from ckptd_daemon.door.frontdoor import FrontDoor, Hall
from ckptd_daemon.door.listener import Listener
from ckptd_daemon.door.notify import notify
from ckptd_daemon.door.questions import Questions
from ckptd_daemon.fetch.fetcher import Fetcher
from ckptd_daemon.rpc.blobs import BlobsService
from ckptd_daemon.rpc.checkpoints import CheckpointsService
from ckptd_daemon.rpc.node import Identity, NodeService
from ckptd_daemon.rpc.refusal import Refusal
from ckptd_daemon.rpc.saves import SavesService
from ckptd_daemon.rpc.status import ErrorStatus
from ckptd_daemon.save.keeping.keeper import Keeper
from ckptd_daemon.save.saver import Saver
from ckptd_daemon.sessions import Sessions
from ckptd_daemon.settings import Settings
from ckptd_daemon.stopping import Half, Stopping, ask_when_idle, drain, ending
from ckptd_proto.v1 import blobs_pb2_grpc, checkpoints_pb2_grpc, node_pb2_grpc, saves_pb2_grpc

logger = logging.getLogger(__name__)

MESSAGE_MAX_BYTES = 1 << 20
LAST_REPLIES_S = 1.0  # for answers on their way when everything is done

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.so_reuseport", 0),
)


async def serve(config: Config, listener: Listener, on_ready: Callable[[], None]) -> None:
    """Serve at *listener* until told to stop; then finish what `drain_s` allows."""
    stopping = Stopping()
    identity = Identity(
        uuid.uuid4().hex, config.private, listener.path, config.state_dir, time.monotonic()
    )
    end = ending()
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(Sessions.open())
        hall = stack.enter_context(Hall.open(config.state_dir / "door"))
        descriptors = Descriptors(listener.descriptors)
        keeper = await stack.enter_async_context(Keeper.open(config))
        opening = Saver.open(config, descriptors.offer, keeper.committed)
        saver = await stack.enter_async_context(opening)
        fetcher = await stack.enter_async_context(
            Fetcher.open(config, sessions, lambda: not saver.is_idle)
        )
        halves: list[Half] = [saver, fetcher]
        node = NodeService(
            identity,
            sessions,
            halves,
            stop=stopping.ask,
            is_stopping=lambda: stopping.is_asked,
            saves=saver.statistics,
            preemption=saver.preemption,
            notice=lambda: saver.notice,
            fetches=fetcher.statistics,
            settings=Settings(config, fetcher.limits, fetcher.limit),
        )
        server = _new_server(identity, stopping)
        node_pb2_grpc.add_NodeServicer_to_server(node, server)
        blobs = BlobsService(fetcher, sessions, descriptors.offer)
        blobs_pb2_grpc.add_BlobsServicer_to_server(blobs, server)
        saves_pb2_grpc.add_SavesServicer_to_server(SavesService(saver, sessions), server)
        checkpoints = CheckpointsService(saver, keeper, sessions)
        checkpoints_pb2_grpc.add_CheckpointsServicer_to_server(checkpoints, server)
        service = await stack.enter_async_context(_running(server, hall, "grpc"))
        refusal = _new_server(identity, stopping)
        refusal.add_generic_rpc_handlers((Refusal(),))
        await stack.enter_async_context(_running(refusal, hall, "refusal"))
        allowed = config.allow_uids | {os.geteuid()}
        door = FrontDoor(listener.calls, hall, sessions, allowed)
        questions = Questions(identity.instance, allowed, blobs.answer)

        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        await tasks.start(stopping.listen)  # before anyone is told that we are ready
        tasks.start_soon(descriptors.serve, questions)
        tasks.start_soon(door.serve)
        if config.private:
            tasks.start_soon(ask_when_idle, stopping, config.idle_s, sessions, halves)
        gc.freeze()  # what is here stays: a look through all of it would stop everybody for 20 ms
        _say_ready(listener)
        on_ready()
        await stopping.wait_asked()
        notify("STOPPING=1")
        await service.enter_graceful_shutdown()
        await drain(halves, config.drain_s)
        end.start()
        await server.stop(LAST_REPLIES_S)


def _new_server(identity: Identity, stopping: Stopping) -> grpc.aio.Server:
    interceptor = ErrorStatus(identity.instance, lambda: stopping.is_asked)
    return grpc.aio.server(interceptors=(interceptor,), options=_OPTIONS)


@asynccontextmanager
async def _running(
    server: grpc.aio.Server, hall: Hall, name: str
) -> AsyncIterator[health.aio.HealthServicer]:
    """Run *server* at the inner socket *name*, with the standard health service."""
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"unix:{hall.address(name)}")
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(0)


def _say_ready(listener: Listener) -> None:
    logger.info("ready", extra={"socket": listener.path, "version": __version__})
    with suppress(BrokenPipeError):  # whoever started us died meanwhile; others may need us
        sys.stdout.write(f"ckptd ready unix:{listener.path}\n")
        sys.stdout.flush()
    notify("READY=1", f"STATUS=serving at {listener.path}")


def run(config: Config, listener: Listener, *, on_ready: Callable[[], None]) -> None:
    """Run `serve` on a fast event loop; *on_ready* is called when calls are accepted."""
    anyio.run(serve, config, listener, on_ready, backend_options={"use_uvloop": True})
