"""A server of the Model Context Protocol with the official SDK, which counts what its tools run.

Its argument is a JSON object: `json` makes it answer in JSON, and not in event streams. `GET /counts` tells how
often each tool ran, and `POST /go` lets a call of `slow` end.
"""

import asyncio
import collections
import json
import socket
import sys

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations
from starlette.responses import JSONResponse

job = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
counts = collections.Counter()
go = asyncio.Event()
server = MCPServer("counting")


def ran(tool):
    counts[tool] += 1
    return f"execution {counts[tool]} of {tool}"


@server.tool()
def charge(amount: int) -> str:
    return f"{ran('charge')}: {amount}"


@server.tool()
def fail() -> str:
    raise ValueError(ran("fail"))


@server.tool()
async def slow(ctx: Context) -> str:
    said = ran("slow")
    await ctx.report_progress(1, 2)
    await go.wait()
    return said


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def look() -> str:
    return ran("look")


@server.custom_route("/counts", methods=["GET"])
async def tell(request):
    return JSONResponse(dict(counts))


@server.custom_route("/go", methods=["POST"])
async def let_go(request):
    go.set()
    return JSONResponse({})


app = server.streamable_http_app(json_response=bool(job.get("json")))
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(f"on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
config = uvicorn.Config(app, log_level="warning")
asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
