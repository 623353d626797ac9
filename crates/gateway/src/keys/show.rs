//! Operations as text, for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::control_client::{page_table, text};

/// A table with a line for each operation.
pub(super) fn list(page: &Value) -> String {
    let operations = page["operations"].as_array().map_or(&[][..], Vec::as_slice);
    if operations.is_empty() {
        return "no operations\n".to_owned();
    }
    let heads = [
        "OPERATION",
        "STATE",
        "CREATED",
        "STATUS",
        "TRIES",
        "TENANT",
        "KEY",
        "REQUEST",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for operation in operations {
        rows.push(vec![
            text(&operation["id"]),
            text(&operation["state"]),
            text(&operation["created_at"]),
            text(&operation["status"]),
            text(&operation["attempts"]),
            text(&operation["tenant"]),
            text(&operation["key"]),
            format!(
                "{} {}",
                text(&operation["method"]),
                text(&operation["path"])
            ),
        ]);
    }
    page_table(&rows, page)
}

/// All that is known of one operation.
pub(super) fn operation(operation: &Value) -> String {
    let mut out = String::new();
    let fields = [
        ("operation", "id"),
        ("state", "state"),
        ("reason", "reason"),
        ("key", "key"),
        ("tenant", "tenant"),
        ("namespace", "namespace"),
        ("route", "route"),
        ("created", "created_at"),
        ("completed", "completed_at"),
        ("expires", "expires_at"),
        ("lease until", "lease_until"),
        ("status", "status"),
        ("response bytes", "response_bytes"),
    ];
    for (label, name) in fields {
        if !operation[name].is_null() {
            let _ = writeln!(out, "{label:<15} {}", text(&operation[name]));
        }
    }
    let request = format!(
        "{} {}",
        text(&operation["method"]),
        text(&operation["path"])
    );
    let _ = writeln!(out, "{:<15} {request}", "request");
    if operation["metered"].is_object() {
        metered(&operation["metered"], &mut out);
    }
    let ruling = &operation["ruling"];
    if ruling.is_object() {
        let (who, at) = (text(&ruling["who"]), text(&ruling["at"]));
        let reason = match ruling["reason"].as_str() {
            None | Some("") => String::new(),
            Some(reason) => format!(": {reason}"),
        };
        let _ = writeln!(out, "{:<15} {who}, {at}{reason}", "settled by");
    }
    for attempt in operation["attempts_log"].as_array().into_iter().flatten() {
        let number = format!("attempt {}", text(&attempt["number"]));
        let _ = writeln!(
            out,
            "{number:<15} {}  {}  from {}",
            text(&attempt["at"]),
            text(&attempt["got"]),
            text(&attempt["peer"]),
        );
    }
    for header in operation["response_headers"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let _ = writeln!(
            out,
            "{:<15} {}: {}",
            "header",
            text(&header[0]),
            text(&header[1])
        );
    }
    out
}

/// What it used and cost.
fn metered(metered: &Value, out: &mut String) {
    for (label, name) in [
        ("provider", "provider"),
        ("model", "model"),
        ("asked for", "request_model"),
    ] {
        if metered[name].as_str().is_some_and(|said| !said.is_empty()) {
            let _ = writeln!(out, "{label:<15} {}", text(&metered[name]));
        }
    }
    let usage: Vec<_> = metered["usage"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(unit, count)| format!("{unit} {}", text(count)))
        .collect();
    let usage = match &*usage {
        [] => "not told".to_owned(),
        told => told.join(", "),
    };
    let _ = writeln!(
        out,
        "{:<15} {usage}  (source: {})",
        "usage",
        text(&metered["source"])
    );
    let cost = &metered["cost"];
    if cost.is_object() {
        let by = (text(&cost["basis"]), text(&cost["version"]));
        let _ = writeln!(
            out,
            "{:<15} {} USD  (by {}: {})",
            "cost",
            text(&cost["usd"]),
            by.0,
            by.1
        );
    }
}

/// The ids of several operations.
pub(super) fn ids(operations: &[Value]) -> String {
    let ids: Vec<_> = operations
        .iter()
        .map(|operation| text(&operation["id"]))
        .collect();
    ids.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_a_table_whose_columns_line_up() {
        let page = json!({ "operations": [
            { "id": "op_1", "state": "completed", "created_at": "t", "status": 200, "attempts": 2,
              "tenant": "acme", "key": "k", "method": "POST", "path": "/x" },
            { "id": "op_22", "state": "unknown", "created_at": "t", "status": null, "attempts": 1,
              "tenant": "a", "key": "k2", "method": "POST", "path": "/y" },
        ], "next_cursor": "op_22" });
        let shown = list(&page);
        let starts: Vec<_> = shown
            .lines()
            .take(3)
            .map(|line| {
                line.find("STATE")
                    .or(line.find("completed"))
                    .or(line.find("unknown"))
            })
            .collect();
        assert!(
            starts.iter().all(|at| at.is_some() && *at == starts[0]),
            "{shown}"
        );
        assert!(shown.ends_with("raise --limit)\n"), "{shown}");
        assert_eq!(list(&json!({ "operations": [] })), "no operations\n");
    }
}
