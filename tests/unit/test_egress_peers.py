"""Whose connections the site's way out takes: those of its own account, and not too many."""

import asyncio
import contextlib
import os
import socket

import pytest
import uvicorn
from starlette.applications import Starlette

from flows.egress_peers import MAX_CONNECTIONS, LocalProtocol, is_own

HEADER = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
)
# 0x8235 is 33333 and 0xC350 is 50000; 127.0.0.1 as x86 and arm64 print it.
ROW = "   1: 0100007F:{there} 0100007F:{here} 01 00000000:00000000 00:00000000 00000000  {uid}  0"
HERE, THERE = ("127.0.0.1", 33333), ("127.0.0.1", 50000)


@pytest.fixture
def table(tmp_path):
    def write(*rows: str):
        path = tmp_path / "tcp"
        path.write_text("\n".join((HEADER, *rows)) + "\n")
        return path

    return write


def test_connection_of_this_account_is_its_own(table):
    ours = ROW.format(there="C350", here="8235", uid=os.getuid())

    assert is_own(HERE, THERE, table(ours))


def test_connection_of_another_account_and_one_that_is_not_there_are_not(table):
    theirs = ROW.format(there="C350", here="8235", uid=os.getuid() + 1)
    # The listener's own row of the same connection says whose the listener is.
    turned = ROW.format(there="8235", here="C350", uid=os.getuid())

    assert not is_own(HERE, THERE, table(theirs, turned))
    assert not is_own(HERE, THERE, table())


def test_machine_without_such_a_table_is_not_shut_out(tmp_path):
    assert is_own(HERE, THERE, tmp_path / "absent")


def test_real_connection_is_found_in_the_kernels_table():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        taken, _ = server.accept()
        with taken:
            assert is_own(taken.getsockname(), client.getsockname())


def test_connections_beyond_the_bound_are_dropped_and_the_others_answered():
    async def crowd() -> tuple[int, bytes]:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(Starlette(), http=LocalProtocol, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110  the server tells by an attribute
            await asyncio.sleep(0.01)
        port = listener.getsockname()[1]
        ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(70)]
        for reader, _ in ends[MAX_CONNECTIONS:]:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        reader, writer = ends[0]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        status = (await reader.readline()).split()[1]
        n_open = len(server.server_state.connections)
        for _, each in ends:
            each.close()
        server.should_exit = True
        await serving
        return n_open, status

    n_open, status = asyncio.run(crowd())

    # Nothing is served there, which is an answer.
    assert (n_open, status) == (64, b"404")
