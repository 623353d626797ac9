"""A Lambda function with Powertools, and as much of Lambda as one call needs.

The event comes on standard input, the result goes to standard output.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

import boto3
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent,
)
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyValidationError,
)

TABLE = "idempotency"

config = IdempotencyConfig(
    event_key_jmespath='headers."Idempotency-Key"',
    payload_validation_jmespath="body",
    raise_on_no_idempotency_key=True,
)


@idempotent(config=config, persistence_store=DynamoDBPersistenceLayer(table_name=TABLE))
def handler(event, context):
    request = urllib.request.Request(os.environ["WORK_URL"], event["body"].encode())
    request.add_header("Content-Type", "application/json")
    try:
        answer = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        answer = error
    kept = ("Content-Type", "X-Work-Execution", "X-Work-Note")
    return {
        "statusCode": answer.status,
        "multiValueHeaders": {name: answer.headers.get_all(name) for name in kept},
        "body": answer.read().decode(),
    }


class Context:
    """What Lambda tells a function about its call."""

    function_name = "work"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:work"
    aws_request_id = "one"

    def __init__(self):
        self.until = time.monotonic() + float(os.environ["FUNCTION_TIMEOUT_S"])

    def get_remaining_time_in_millis(self):
        return max(0, int((self.until - time.monotonic()) * 1000))


def create_table():
    """As the documentation of Powertools has it: one key, `id`."""
    boto3.client("dynamodb").create_table(
        TableName=TABLE,
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )


def call(event):
    try:
        return handler(event, Context())
    except IdempotencyAlreadyInProgressError as error:
        status, why = 409, error
    except IdempotencyValidationError as error:
        status, why = 422, error
    except Exception as error:  # Lambda tells any other error as one of the function.
        status, why = 502, error
    return {"statusCode": status, "body": f"{type(why).__name__}: {why}"}


said = sys.stdin.read()
if said == "create-table":
    create_table()
else:
    print(json.dumps(call(json.loads(said))))
