"""A service of Restate with one handler, whose side effect is a durable step."""

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request

import hypercorn.asyncio
import hypercorn.config
import restate

service = restate.Service("Work")

# Without a limit Restate tries until it succeeds.
limit = os.environ.get("MAX_ATTEMPTS")
tries = restate.RunOptions(max_attempts=int(limit) if limit else None)


@service.handler("do")
async def do(context: restate.Context, order: dict) -> dict:
    return await context.run_typed("work", work, tries, order=order)


async def work(order: dict) -> dict:
    return await asyncio.to_thread(ask, order)


def ask(order: dict) -> dict:
    request = urllib.request.Request(os.environ["WORK_URL"], json.dumps(order).encode())
    request.add_header("Content-Type", "application/json")
    try:
        answer = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        # What will not get better is to be told so: anything else is tried again.
        raise restate.TerminalError(error.read().decode(), status_code=error.code) from error
    return {"answer": answer.read().decode()}


config = hypercorn.config.Config()
config.bind = [f"127.0.0.1:{sys.argv[1]}"]
asyncio.run(hypercorn.asyncio.serve(restate.app([service]), config))
