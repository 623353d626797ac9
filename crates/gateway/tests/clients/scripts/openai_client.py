"""Calls with the official OpenAI SDK, as the JSON in the first argument asks.

Prints JSON lines: {"piece": ...} as a stream arrives, and per call one {"text": ..., "mark": ...}
or {"error": ..., "status": ...}.
"""

import asyncio
import json
import sys

import openai

job = json.loads(sys.argv[1])
stream = job.get("stream", False)
options = {
    "base_url": job["base"] + "/v1",
    "api_key": job.get("credential", "sk-test"),
    "timeout": job.get("timeout", 60),
    "max_retries": job.get("max_retries", 2),
}
headers = dict(job.get("headers", {}))
if "key" in job:
    headers["Idempotency-Key"] = job["key"]
prompt = job.get("prompt", "Say it once.")
request = {"model": job.get("model", "gpt-test"), "stream": stream, "extra_headers": headers}
if job["call"] == "chat":
    request["messages"] = [{"role": "user", "content": prompt}]
    if "include_usage" in job:
        request["stream_options"] = {"include_usage": job["include_usage"]}
else:
    request["input"] = prompt


def say(**line):
    print(json.dumps(line), flush=True)


def resource(client):
    return client.chat.completions if job["call"] == "chat" else client.responses


def whole_text(answer):
    return answer.choices[0].message.content if job["call"] == "chat" else answer.output_text


def piece_of(event):
    if job["call"] == "chat":
        if event.usage is not None and not event.choices:
            return f"<usage of {event.usage.completion_tokens}>"
        return (event.choices[0].delta.content or "") if event.choices else ""
    return event.delta if event.type == "response.output_text.delta" else ""


def call(client):
    answer = resource(client).with_raw_response.create(**request)
    mark = answer.headers.get("onlyonce-status")
    if not stream:
        return say(text=whole_text(answer.parse()), mark=mark)
    text = ""
    for event in answer.parse():
        text += piece_of(event)
        say(piece=piece_of(event))
    say(text=text, mark=mark)


def call_for_bytes(client):
    """The bytes as they came, for those who compare streams byte by byte."""
    with resource(client).with_streaming_response.create(**request) as answer:
        text = b""
        for chunk in answer.iter_bytes():
            text += chunk
            say(piece=chunk.decode())
        say(text=text.decode(), mark=answer.headers.get("onlyonce-status"))


async def calls_at_once(count):
    async with openai.AsyncOpenAI(**options) as client:
        answers = [resource(client).with_raw_response.create(**request) for _ in range(count)]
        for answer in await asyncio.gather(*answers):
            say(text=whole_text(answer.parse()), mark=answer.headers.get("onlyonce-status"))


def main():
    if "at_once" in job:
        return asyncio.run(calls_at_once(job["at_once"]))
    client = openai.OpenAI(**options)
    if job.get("wait"):
        say(ready=True)
        sys.stdin.readline()
    for _ in range(job.get("times", 1)):
        try:
            call_for_bytes(client) if job.get("bytes") else call(client)
        except Exception as error:
            say(error=type(error).__name__, status=getattr(error, "status_code", None), message=str(error))


main()
