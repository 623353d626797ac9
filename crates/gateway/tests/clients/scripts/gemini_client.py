"""Calls with the official Google GenAI SDK. The lines that it prints are those of openai_client.py."""

import json
import sys

from google import genai
from google.genai import types

job = json.loads(sys.argv[1])
options = types.HttpOptions(
    base_url=job["base"],
    api_version=job.get("version"),
    timeout=int(job.get("timeout", 60) * 1000),
    headers={**job.get("headers", {}), "Idempotency-Key": job["key"]},
)
client = genai.Client(api_key="goog-test", http_options=options)
request = {"model": "gemini-test", "contents": job.get("prompt", "Say it once.")}


def say(**line):
    print(json.dumps(line), flush=True)


def mark_of(answer):
    headers = answer.sdk_http_response.headers
    return {name.lower(): value for name, value in headers.items()}.get("onlyonce-status")


def call():
    answer = client.models.generate_content(**request)
    say(text=answer.text, mark=mark_of(answer))


def call_streaming():
    text, mark = "", None
    for chunk in client.models.generate_content_stream(**request):
        mark = mark_of(chunk)
        text += chunk.text or ""
        say(piece=chunk.text or "")
    say(text=text, mark=mark)


for _ in range(job.get("times", 1)):
    try:
        call_streaming() if job.get("stream") else call()
    except Exception as error:
        say(error=type(error).__name__, status=getattr(error, "code", None), message=str(error))
