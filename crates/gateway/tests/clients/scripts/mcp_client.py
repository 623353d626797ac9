"""Calls of tools with the official SDK of the Model Context Protocol, as the JSON in the first argument asks.

`calls` is a list, made one after the other in one session, or `at_once`: each names a `tool` with its `arguments`
and a `key` for its `_meta`, or is "list" or "listen" (for the server's own stream). With `cut`, the connection of the
first call is given up below the SDK when its head is here, and the very same request is sent again, as a mesh or a
transport that retries does.

Prints JSON lines: {"ready": true} before the calls where the job says `wait`, {"piece": ...} for progress, and per
call one {"text": ..., "mark": ...} or {"error": ..., "message": ..., "status": ...}, where the status is that in the
data of the error.
"""

import asyncio
import json
import sys

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

job = json.loads(sys.argv[1])
KEY_NAME = "dev.onlyonce/idempotency-key"
marks = []
cuts = 1 if job.get("cut") else 0
listening = asyncio.Event()


def say(**line):
    print(json.dumps(line), flush=True)


class Transport(httpx2.AsyncHTTPTransport):
    async def handle_async_request(self, request):
        global cuts
        message = json.loads(request.content) if request.method == "POST" else {}
        response = await super().handle_async_request(request)
        if request.method == "GET":
            listening.set()
        if message.get("method") == "tools/call":
            if cuts:
                cuts -= 1
                await response.aclose()
                response = await super().handle_async_request(request)
            marks.append(response.headers.get("onlyonce-status"))
        return response


async def progress(done, total, message):
    say(piece=f"{done} of {total}")


async def call(client, wanted):
    if wanted == "listen":
        await asyncio.wait_for(listening.wait(), 30)
        return say(text="listening", mark=None)
    if wanted == "list":
        listed = await client.list_tools()
        return say(text=" ".join(tool.name for tool in listed.tools), mark=None)
    meta = {KEY_NAME: wanted["key"]} if "key" in wanted else None
    try:
        result = await client.call_tool(
            wanted["tool"],
            wanted.get("arguments", {}),
            meta=meta,
            progress_callback=progress if wanted.get("progress") else None,
        )
    except MCPError as error:
        data = error.data if isinstance(error.data, dict) else {}
        return say(error=type(error).__name__, message=str(error), status=data.get("status"))
    mark = None if job.get("at_once") else marks[-1]
    text = result.content[0].text
    say(text=f"failed: {text}" if result.is_error else text, mark=mark)


async def main():
    http = httpx2.AsyncClient(
        transport=Transport(),
        headers=job.get("headers", {}),
        timeout=httpx2.Timeout(30, read=60),
    )
    transport = streamable_http_client(job["base"] + "/mcp", http_client=http)
    async with http, Client(transport, mode=job.get("mode", "legacy")) as client:
        if job.get("wait"):
            say(ready=True)
            await asyncio.to_thread(sys.stdin.readline)
        if job.get("at_once"):
            await asyncio.gather(*(call(client, wanted) for wanted in job["calls"]))
        else:
            for wanted in job["calls"]:
                await call(client, wanted)


asyncio.run(main())
