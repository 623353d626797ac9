//! Settling an unknown operation by the console's form.

use axum::extract::Form;
use axum::extract::rejection::FormRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use onlyonce_core::{Head, HeaderBlock};
use onlyonce_engine::Resolution;
use onlyonce_store::Store;
use serde::Deserialize;

use super::super::access::{May, Resolve};
use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::operations::{answer_headers, answer_status};
use super::super::query::{Named, operation_id};
use super::layout;
use super::login::not_a_form;

/// What the form sends.
#[derive(Deserialize)]
pub(in crate::control) struct Settlement {
    form: String,
    outcome: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    content_type: String,
    #[serde(default)]
    body: String,
}

/// `POST /console/operations/{id}/resolve`.
pub(in crate::control) async fn settle<S: Store>(
    desk: May<S, Resolve>,
    Named(id): Named,
    headers: HeaderMap,
    form: Result<Form<Settlement>, FormRejection>,
) -> Result<Response, Refusal> {
    let Form(settlement) = form.map_err(not_a_form)?;
    desk.check_form(&settlement.form)?;
    desk.check_origin(&headers)?;
    Ok(match decide(&desk, &id, settlement).await {
        Ok(()) => Redirect::to(&format!("/console/operations/{id}")).into_response(),
        Err(refusal) => layout::refused(&desk, &refusal),
    })
}

async fn decide<S: Store>(desk: &Desk<S>, id: &str, settlement: Settlement) -> Result<(), Refusal> {
    let id = operation_id(id)?;
    let reason = settlement.reason.trim();
    if reason.is_empty() {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "there is no reason",
            "go back and write how the outcome is known: it goes to the log",
        ));
    }
    let resolution = match &*settlement.outcome {
        "released" => Resolution::Released,
        "completed" => {
            let status = settlement.status.trim().parse().unwrap_or_default();
            let kind = settlement.content_type.trim();
            let headers = [("content-type".to_owned(), kind.to_owned())];
            let headers = if kind.is_empty() {
                &headers[1..]
            } else {
                &headers
            };
            let operation = desk.operation(id).await?;
            Resolution::Completed {
                head: Head {
                    status: answer_status(status)?,
                    headers: answer_headers(headers)?,
                },
                body: settlement.body.into(),
                trailers: HeaderBlock::default(),
                window: desk.window_of(&operation.stored.record.request.route),
            }
        }
        _ => {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "no outcome was chosen",
                "go back and say whether it ran",
            ));
        }
    };
    desk.resolve(id, resolution, reason).await?;
    Ok(())
}
