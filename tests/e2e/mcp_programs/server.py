"""An MCP server, made with the Python SDK of either line: `server.py ADDRESS PORT
CERTIFICATE KEY`.

The line 1 speaks revisions up to 2025-11-25, the line 2 also 2026-07-28.
"""

import asyncio
import sys
from importlib.metadata import version

import uvicorn

OLD = version("mcp").startswith("1.")
if OLD:
    from mcp.server.fastmcp import Context, FastMCP

    server = FastMCP("stand-in", host="0.0.0.0")  # the host turns its check of Host off
else:
    from mcp.server.mcpserver import Context, MCPServer

    server = MCPServer("stand-in")


seen = asyncio.Event()


async def search(query: str) -> str:
    return f"found {query}"


async def read_file(path: str) -> str:
    sys.stderr.write(f"read {path}\n")
    return f"content of {path}"


async def delete_file(path: str) -> str:
    sys.stderr.write(f"deleted {path}\n")
    return f"deleted {path}"


async def slow(ctx: Context) -> str:
    """Tell of progress, then wait for a client that has seen it."""
    await ctx.report_progress(1, 2)
    await seen.wait()
    seen.clear()
    return "done"


async def proceed() -> str:
    seen.set()
    return "proceeds"


async def announce(ctx: Context) -> str:
    """Tell the streams that stay open."""
    await ctx.session.send_tool_list_changed()
    if not OLD:
        await ctx.notify_tools_changed()
    return "told"


async def note() -> str:
    return "a note"


for tool in (search, read_file, delete_file, slow, proceed, announce):
    server.add_tool(tool)
server.resource("notes://one")(note)
address, port, certificate, key = sys.argv[1:]
app = (
    server.streamable_http_app() if OLD else server.streamable_http_app(host="0.0.0.0")
)
uvicorn.run(
    app, host=address, port=int(port), ssl_certfile=certificate, ssl_keyfile=key
)
