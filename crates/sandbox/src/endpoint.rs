//! Which call a request is, and what it costs.

use http::{Method, Uri};

use crate::ledger::{Usage, Usd};
use crate::provider::{Family, Job, Refusal, Reply};
use crate::provider::{anthropic, echo, gemini, models, openai_chat, openai_responses, stripe};

/// One call of one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    ChatCompletions,
    Responses,
    Response { id: &'a str },
    Messages,
    GenerateContent { model: &'a str },
    StreamGenerateContent { model: &'a str, sse: bool },
    Charges,
    PaymentIntents,
    Customers,
    Echo,
    Models,
}

impl<'a> Endpoint<'a> {
    pub(crate) fn of(method: &Method, uri: &'a Uri) -> Option<Self> {
        match *method {
            Method::POST => Self::posted(uri),
            Method::GET | Method::HEAD => Self::read(uri.path()),
            _ => None,
        }
    }

    fn posted(uri: &'a Uri) -> Option<Self> {
        Some(match uri.path() {
            "/v1/echo" => Self::Echo,
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/charges" => Self::Charges,
            "/v1/payment_intents" => Self::PaymentIntents,
            "/v1/customers" => Self::Customers,
            path => {
                let (model, call) = gemini::path(path)?.split_once(':')?;
                match call {
                    "generateContent" => Self::GenerateContent { model },
                    "streamGenerateContent" => {
                        let query = uri.query().unwrap_or_default();
                        let sse = query.split('&').any(|pair| pair == "alt=sse");
                        Self::StreamGenerateContent { model, sse }
                    }
                    _ => return None,
                }
            }
        })
    }

    fn read(path: &'a str) -> Option<Self> {
        if path == "/v1/models" {
            return Some(Self::Models);
        }
        let id = path.strip_prefix("/v1/responses/")?;
        (!id.is_empty() && !id.contains('/')).then_some(Self::Response { id })
    }

    /// What an execution costs. `None` for reads: they run nothing and are not counted.
    pub(crate) fn price(self) -> Option<Usd> {
        let micros = match self {
            Self::ChatCompletions | Self::Responses => 42_000,
            Self::Messages => 51_000,
            Self::GenerateContent { .. } | Self::StreamGenerateContent { .. } => 18_000,
            // The provider's fee, not the amount charged to the card.
            Self::Charges | Self::PaymentIntents => 300_000,
            Self::Customers => 0,
            Self::Echo => 1_000,
            Self::Response { .. } | Self::Models => return None,
        };
        Some(Usd::from_micros(micros))
    }

    /// What answering takes of tokens. `None` for what generates nothing.
    pub(crate) fn usage(self, job: &Job<'_>) -> Option<Usage> {
        match self {
            Self::ChatCompletions
            | Self::Responses
            | Self::Messages
            | Self::GenerateContent { .. }
            | Self::StreamGenerateContent { .. } => Some(Usage {
                input: job.prompt_tokens(),
                output: job.completion_tokens(),
            }),
            Self::Charges | Self::PaymentIntents | Self::Customers | Self::Echo => None,
            Self::Response { .. } | Self::Models => None,
        }
    }

    pub(crate) fn reply(self, family: Family, job: &Job<'_>) -> Result<Reply, Refusal> {
        match self {
            Self::ChatCompletions => openai_chat::reply(job),
            Self::Responses => openai_responses::reply(job),
            Self::Response { id } => openai_responses::look_up(job, id),
            Self::Messages => anthropic::reply(job),
            Self::GenerateContent { model } => gemini::reply(job, model),
            Self::StreamGenerateContent { model, sse } => gemini::stream(job, model, sse),
            Self::Charges => stripe::charge(job),
            Self::PaymentIntents => stripe::payment_intent(job),
            Self::Customers => stripe::customer(job),
            Self::Echo => Ok(echo::reply(job)),
            Self::Models => Ok(models::reply(family, job)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint<'a>(method: &str, uri: &'a Uri) -> Option<Endpoint<'a>> {
        Endpoint::of(&method.parse().unwrap(), uri)
    }

    #[test]
    fn gemini_calls_are_told_by_the_verb_after_the_model() {
        let uri = Uri::from_static("/v1beta/models/gemini-x:streamGenerateContent?key=a&alt=sse");
        assert_eq!(
            endpoint("POST", &uri),
            Some(Endpoint::StreamGenerateContent {
                model: "gemini-x",
                sse: true
            })
        );
        let uri = Uri::from_static("/v1/models/gemini-x:generateContent");
        let stable = endpoint("POST", &uri);
        assert_eq!(
            stable,
            Some(Endpoint::GenerateContent { model: "gemini-x" })
        );
        let uri = Uri::from_static("/v1beta/models/gemini-x:countTokens");
        assert_eq!(endpoint("POST", &uri), None);
    }

    #[test]
    fn reads_cost_nothing_and_other_methods_are_unknown() {
        let uri = Uri::from_static("/v1/responses/resp_1");
        let read = endpoint("GET", &uri).unwrap();
        assert_eq!(
            (read, read.price()),
            (Endpoint::Response { id: "resp_1" }, None)
        );
        assert_eq!(endpoint("DELETE", &uri), None);
        assert_eq!(endpoint("GET", &Uri::from_static("/v1/echo")), None);
    }
}
