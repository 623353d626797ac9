"""Calls with the official Stripe SDK. Per call one line: {"text": id} or {"error": ..., "status": ...}.

The call `customers` lists how many customers there are: {"text": count}.
"""

import json
import sys

import stripe

job = json.loads(sys.argv[1])
client = stripe.StripeClient(
    "sk_test_12345",
    base_addresses={"api": job["base"]},
    http_client=stripe.RequestsClient(timeout=job.get("timeout", 60)),
    max_network_retries=job.get("max_retries", 2),
)
options = {"headers": job.get("headers", {})}
if "key" in job:
    options["idempotency_key"] = job["key"]


def say(**line):
    print(json.dumps(line), flush=True)


def call():
    amount = job.get("amount", 100)
    if job["call"] == "charge":
        made = client.v1.charges.create(
            {"amount": amount, "currency": "usd", "source": "tok_visa"}, options
        )
    elif job["call"] == "payment_intent":
        made = client.v1.payment_intents.create({"amount": amount, "currency": "usd"}, options)
    elif job["call"] == "customer":
        made = client.v1.customers.create({"email": "once@example.com"}, options)
    else:
        return say(text=str(len(client.v1.customers.list().data)), mark=None)
    say(text=made.id, mark=made.last_response.headers.get("onlyonce-status"))


for _ in range(job.get("times", 1)):
    try:
        call()
    except Exception as error:
        say(error=type(error).__name__, status=getattr(error, "http_status", None), message=str(error))
