//! Stripe charges, payment intents and customers: <https://docs.stripe.com/api>
//!
//! Unlike the real one it does not honour idempotency keys.

use std::collections::HashMap;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Job, Refusal, Reply};

pub(super) const API_VERSION: &str = "2025-03-31.basil";

pub(crate) fn charge(job: &Job<'_>) -> Result<Reply, Refusal> {
    let form = Form::of(job);
    let amount = form.amount()?;
    refuse_declined(form.text("source"))?;
    Ok(Reply::json(&json!({
        "id": id(job, "ch"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "balance_transaction": id(job, "txn"),
        "billing_details": { "address": null, "email": null, "name": null, "phone": null },
        "captured": true,
        "created": job.now_s(),
        "currency": form.currency(),
        "customer": form.text("customer"),
        "description": form.text("description"),
        "disputed": false,
        "failure_code": null,
        "failure_message": null,
        "livemode": false,
        "metadata": form.metadata(),
        "outcome": {
            "network_status": "approved_by_network",
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": true,
        "payment_intent": null,
        "payment_method": id(job, "card"),
        "receipt_email": form.text("receipt_email"),
        "refunded": false,
        "status": "succeeded",
    })))
}

pub(crate) fn payment_intent(job: &Job<'_>) -> Result<Reply, Refusal> {
    let form = Form::of(job);
    let amount = form.amount()?;
    let payment_method = form.text("payment_method");
    refuse_declined(payment_method)?;
    let status = match (payment_method, form.text("confirm")) {
        (Some(_), Some("true")) => "succeeded",
        (Some(_), _) => "requires_confirmation",
        (None, _) => "requires_payment_method",
    };
    let received = if status == "succeeded" { amount } else { 0 };
    let intent = id(job, "pi");
    Ok(Reply::json(&json!({
        "id": intent,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_received": received,
        "canceled_at": null,
        "cancellation_reason": null,
        "capture_method": "automatic",
        "client_secret": format!("{intent}_secret_sandbox"),
        "confirmation_method": "automatic",
        "created": job.now_s(),
        "currency": form.currency(),
        "customer": form.text("customer"),
        "description": form.text("description"),
        "last_payment_error": null,
        "latest_charge": (status == "succeeded").then(|| id(job, "ch")),
        "livemode": false,
        "metadata": form.metadata(),
        "next_action": null,
        "payment_method": payment_method,
        "payment_method_types": ["card"],
        "receipt_email": form.text("receipt_email"),
        "status": status,
    })))
}

pub(crate) fn customer(job: &Job<'_>) -> Result<Reply, Refusal> {
    let form = Form::of(job);
    Ok(Reply::json(&json!({
        "id": id(job, "cus"),
        "object": "customer",
        "address": null,
        "balance": 0,
        "created": job.now_s(),
        "currency": null,
        "default_source": null,
        "delinquent": false,
        "description": form.text("description"),
        "email": form.text("email"),
        "livemode": false,
        "metadata": form.metadata(),
        "name": form.text("name"),
        "phone": form.text("phone"),
        "preferred_locales": [],
        "shipping": null,
        "tax_exempt": "none",
    })))
}

fn id(job: &Job<'_>, prefix: &str) -> String {
    format!("{prefix}_{}", job.id)
}

/// The test cards that Stripe documents as declined, `tok_chargeDeclined` among them.
fn refuse_declined(payment: Option<&str>) -> Result<(), Refusal> {
    if !payment.is_some_and(|payment| payment.contains("chargeDeclined")) {
        return Ok(());
    }
    Err(Refusal {
        status: StatusCode::PAYMENT_REQUIRED,
        message: "Your card was declined.".to_owned(),
        code: Some("card_declined"),
        param: None,
    })
}

/// A form body. Absent fields are forgiven, as this is a sandbox.
struct Form(HashMap<String, String>);

impl Form {
    fn of(job: &Job<'_>) -> Self {
        Self(form_urlencoded::parse(job.body).into_owned().collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn currency(&self) -> &str {
        self.text("currency").unwrap_or("usd")
    }

    /// In the smallest unit of the currency.
    fn amount(&self) -> Result<u64, Refusal> {
        let Some(text) = self.text("amount") else {
            return Ok(2_000);
        };
        text.parse().map_err(|_| Refusal {
            status: StatusCode::BAD_REQUEST,
            message: format!("Invalid integer: {text}"),
            code: Some("parameter_invalid_integer"),
            param: Some("amount"),
        })
    }

    /// `metadata[order]=1` as `{"order": "1"}`.
    fn metadata(&self) -> Map<String, Value> {
        let name = |field: &str| {
            Some(
                field
                    .strip_prefix("metadata[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        };
        self.0
            .iter()
            .filter_map(|(field, value)| Some((name(field)?, Value::from(value.as_str()))))
            .collect()
    }
}
