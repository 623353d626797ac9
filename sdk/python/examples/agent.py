"""An agent loop that can be killed anywhere and started again: each paid answer and each side effect happens once.

Three things are done for that:

- The model's answers are asked for through the gateway, with a key for each step that outlives the process. A
  restarted loop gets the very same answers, and so the same tool calls with the same ids.
- Each tool call is an operation: run id, step and tool call id are its key.
- A tool passes its operation's id on as the key of what it calls, through the gateway too. So it may run again where
  its process died half way (``on_unknown="rerun"``), and what it calls still happens once.

The gateway needs an upstream whose model asks for these tools, and that has `/v1/charges` and `/v1/emails`. That of the
sandbox asks for none; the test of this example brings one that does (tests/test_examples.py).

    python agent.py run-7 http://127.0.0.1:8787 http://127.0.0.1:8788 ./keys
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any, Dict, List

import onlyonce

STEPS = 8
# How long a dead process is believed to be at a tool call.
LEASE = os.environ.get("LEASE", "30s")


def post(url: str, body: Any, key: str) -> Any:
    """A request to a paid API, through the gateway."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-test", "Idempotency-Key": key}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


class Agent:
    def __init__(self, run: str, gateway: str, control: str, keys: str) -> None:
        self.run_id = run
        self.gateway = gateway
        self.keys = onlyonce.ActionKeys(keys)
        self.tools = onlyonce.Client(control).tools(
            {"charge": self.charge, "send_email": self.send_email}, run=run, on_unknown="rerun", lease=LEASE
        )

    def charge(self, customer: str, amount: int) -> Any:
        """A tool: charges a customer."""
        return post(f"{self.gateway}/v1/charges", {"customer": customer, "amount": amount}, onlyonce.current().id)

    def send_email(self, to: str, text: str) -> Any:
        """Another one: sends an e-mail."""
        return post(f"{self.gateway}/v1/emails", {"to": to, "text": text}, onlyonce.current().id)

    def model(self, step: int, messages: List[Dict[str, Any]]) -> Dict[str, Any]:
        """The model's answer at `step`: paid for once, the same after each restart.

        With the official SDK it is ``keys.client(openai, f"{run}/{step}").chat.completions.create(...)``.
        """
        url, asked = f"{self.gateway}/v1/chat/completions", {"model": "gpt-5-mini", "messages": messages}
        key = self.keys.call(f"{self.run_id}/step-{step}").key("POST", url, json.dumps(asked).encode())
        message: Dict[str, Any] = post(url, asked, key)["choices"][0]["message"]
        return message

    def answer(self, step: int, call: Any) -> Dict[str, Any]:
        """What the tool says; or what is wrong with the call, so that the model can put it right."""
        try:
            return self.tools.answer(step, call)
        except onlyonce.BadToolCall as error:
            return error.answer

    def run(self, task: str) -> str:
        """Works until the model asks for no further tool; what it says then."""
        messages: List[Dict[str, Any]] = [{"role": "user", "content": task}]
        for step in range(1, STEPS + 1):
            message = self.model(step, messages)
            messages.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            messages += [self.answer(step, call) for call in message["tool_calls"]]
        raise RuntimeError(f"no answer after {STEPS} steps")


if __name__ == "__main__":
    print(Agent(*sys.argv[1:]).run("Charge customer c-1 42 dollars and tell them."), flush=True)
