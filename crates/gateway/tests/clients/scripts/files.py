"""Reads the files of three sinks, as the JSON in the first argument names them: Parquet with pyarrow, CSV and
JSON lines with what comes with Python. Fails unless they say the same; prints what is in the Parquet file.
"""

import csv
import json
import sys
from datetime import datetime
from decimal import Decimal

import pyarrow
from pyarrow import parquet

job = json.loads(sys.argv[1])


def told(row):
    """What somebody told: nothing is null in Parquet and JSON, and empty in CSV."""
    return {name: value for name, value in row.items() if value not in (None, "")}


def row_of_json(entry):
    usage, cost = entry.pop("usage"), entry.pop("cost") or {}
    assert cost.get("currency", "USD") == "USD", cost
    row = entry | usage | {"cost_basis": cost.get("basis"), "cost_version": cost.get("version")}
    row["cost_usd"] = Decimal(cost["amount"]) if cost else None
    for name in ("completed_at", "claimed_at"):
        row[name] = datetime.fromisoformat(row[name])
    return told(row)


def row_of_csv(cells, schema):
    def parsed(name, text):
        kind = schema.field(name).type
        if pyarrow.types.is_timestamp(kind):
            return datetime.fromisoformat(text)
        if pyarrow.types.is_decimal(kind):
            return Decimal(text)
        return int(text) if pyarrow.types.is_integer(kind) else text

    return {name: parsed(name, text) for name, text in told(cells).items()}


table = parquet.read_table(job["parquet"])
rows = [told(row) for row in table.to_pylist()]
with open(job["jsonl"], encoding="utf-8") as lines:
    of_json = [row_of_json(json.loads(line)) for line in lines]
with open(job["csv"], encoding="utf-8", newline="") as lines:
    reader = csv.DictReader(lines)
    of_csv = [row_of_csv(cells, table.schema) for cells in reader]
assert reader.fieldnames == table.column_names, (reader.fieldnames, table.column_names)
assert rows == of_json, (rows, of_json)
assert rows == of_csv, (rows, of_csv)
kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
print(json.dumps({"ids": [row["id"] for row in rows], "kinds": kinds}))
