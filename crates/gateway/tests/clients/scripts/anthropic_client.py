"""Calls with the official Anthropic SDK. The lines that it prints are those of openai_client.py."""

import json
import sys

import anthropic

job = json.loads(sys.argv[1])
client = anthropic.Anthropic(
    base_url=job["base"],
    api_key="sk-ant-test",
    timeout=job.get("timeout", 60),
    max_retries=job.get("max_retries", 2),
)
request = {
    "model": "claude-test",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": job.get("prompt", "Say it once.")}],
    "extra_headers": {**job.get("headers", {}), "Idempotency-Key": job["key"]},
}


def say(**line):
    print(json.dumps(line), flush=True)


def call():
    answer = client.messages.with_raw_response.create(**request)
    say(text=answer.parse().content[0].text, mark=answer.headers.get("onlyonce-status"))


def call_streaming():
    with client.messages.stream(**request) as stream:
        for piece in stream.text_stream:
            say(piece=piece)
        text = stream.get_final_message().content[0].text
        say(text=text, mark=stream.response.headers.get("onlyonce-status"))


if job.get("wait"):
    say(ready=True)
    sys.stdin.readline()
for _ in range(job.get("times", 1)):
    try:
        call_streaming() if job.get("stream") else call()
    except Exception as error:
        say(error=type(error).__name__, status=getattr(error, "status_code", None), message=str(error))
