"""An MCP client, made with the Python SDK of either line: `client.py MODE URL`.

It reads steps from standard input, and prints a line of JSON for what each came to.
MODE is for the line 2: how it finds out the server's revisions.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

OLD = version("mcp").startswith("1.")
if OLD:
    from mcp import ClientSession
    from mcp import McpError as Denied
    from mcp.client.streamable_http import streamablehttp_client
else:
    from mcp import Client
    from mcp import MCPError as Denied

changed = asyncio.Event()


async def on_message(message: object) -> None:
    if "list_changed" in repr(message):
        changed.set()


@asynccontextmanager
async def connected(mode: str, url: str) -> AsyncIterator[Any]:
    if not OLD:
        async with Client(url, mode=mode, message_handler=on_message) as client:
            yield client
        return
    async with (
        streamablehttp_client(url) as (read, write, _),
        ClientSession(read, write, message_handler=on_message) as session,
    ):
        await session.initialize()
        yield session


@asynccontextmanager
async def listening(client: Any) -> AsyncIterator[None]:
    if OLD or client.protocol_version < "2026":
        yield
        return
    async with client.listen(tools_list_changed=True) as events:
        yield
        async for _ in events:
            return


async def do(
    client: Any, what: str, name: str = "", arguments: object = None
) -> object:
    if what == "list":
        return sorted(tool.name for tool in (await client.list_tools()).tools)
    if what == "read":
        return (await client.read_resource(name)).contents[0].text
    if what == "listen":
        async with listening(client):
            while not changed.is_set():
                await client.call_tool("announce", {})
        return "changed"
    if what == "stream":
        return await streamed(client)
    return (await client.call_tool(name, arguments)).content[0].text


async def streamed(client: Any) -> object:
    """Call a tool that ends once the client has read that it goes on."""
    progressed = asyncio.Event()

    async def on_progress(*_: object) -> None:
        progressed.set()

    async def proceed() -> None:
        await progressed.wait()
        await client.call_tool("proceed", {})

    result, _ = await asyncio.gather(
        client.call_tool("slow", {}, progress_callback=on_progress), proceed()
    )
    return result.content[0].text


async def come_to(step: list[Any], client: Any) -> object:
    try:
        return await asyncio.wait_for(do(client, *step), 20)
    except (Denied, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


async def main(mode: str, url: str) -> None:
    async with connected(mode, url) as client:
        for step in json.load(sys.stdin):
            sys.stdout.write(f"{json.dumps(await come_to(step, client))}\n")
    sys.stdout.write('"ended"\n')


asyncio.run(main(*sys.argv[1:]))
