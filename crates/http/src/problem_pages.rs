//! The pages behind the `type` of every problem document.
//!
//! Each says what happened, what it means for the caller's money, and what to do next. The control
//! listener serves them at `/problems/NAME`.

use std::fmt::Write as _;

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProblemPage {
    /// The last part of its path.
    pub name: &'static str,
    /// The title, also of the documents.
    pub title: &'static str,
    /// The statuses that it comes with.
    pub statuses: &'static [u16],
    /// What happened.
    pub happened: &'static str,
    /// What it means for the caller's money.
    pub money: &'static str,
    /// What to do next.
    pub next: &'static str,
}

/// The page named `name`.
pub fn page(name: &str) -> Option<&'static ProblemPage> {
    PAGES.iter().find(|page| page.name == name)
}

impl ProblemPage {
    /// The page as a document of its own.
    pub fn to_html(&self) -> String {
        // The texts are ours and hold none of the characters that HTML would need escaped; a test
        // holds them to it.
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title} - Onlyonce</title>\
             <style>body{{font:17px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;\
             padding:0 1em}}code{{font-size:.9em}}</style></head><body>\n\
             <p><code>{name}</code> {statuses}</p>\n<h1>{title}</h1>\n\
             <h2>What happened</h2>\n<p>{happened}</p>\n\
             <h2>What it means for your money</h2>\n<p>{money}</p>\n\
             <h2>What to do next</h2>\n<p>{next}</p>\n</body></html>\n",
            title = self.title,
            name = self.name,
            statuses = self.statuses_text(),
            happened = self.happened,
            money = self.money,
            next = self.next,
        )
    }

    /// The page as Markdown.
    pub fn to_markdown(&self) -> String {
        format!(
            "# {}\n\n`{}` {}\n\n## What happened\n\n{}\n\n\
             ## What it means for your money\n\n{}\n\n## What to do next\n\n{}\n",
            self.title,
            self.name,
            self.statuses_text(),
            self.happened,
            self.money,
            self.next
        )
    }

    fn statuses_text(&self) -> String {
        let mut text = String::from("HTTP ");
        for (at, status) in self.statuses.iter().enumerate() {
            let separator = if at == 0 { "" } else { " or " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{separator}{status}");
        }
        text
    }
}

/// All pages.
pub static PAGES: [ProblemPage; 20] = [
    ProblemPage {
        name: "operation-in-flight",
        title: "The operation is still running",
        statuses: &[409],
        happened: "An earlier attempt with this key is being executed, and its answer is not \
                   complete yet. Either the route does not let attempts join a running operation, \
                   or this attempt joined it and waited as long as the route allows.",
        money: "The one execution goes on and costs what it costs, once. This attempt sent nothing \
                and costs nothing.",
        next: "Send the same request with the same key again after the time in Retry-After. As \
               soon as the operation is finished you get its answer.",
    },
    ProblemPage {
        name: "key-reused",
        title: "The key was used for another request",
        statuses: &[422],
        happened: "This key already belongs to a request that differs from this one in method, \
                   upstream, path, query, content type or encoding, one of the route's listed \
                   headers, or body.",
        money: "This attempt ran nothing and costs nothing. The first request is not changed by \
                it.",
        next: "Use a new key for a new action. If this was meant to be a retry, send exactly the \
               same request as the first time. Do not retry it as it is.",
    },
    ProblemPage {
        name: "key-missing",
        title: "The key is missing",
        statuses: &[400],
        happened: "This route takes only requests that carry a key, and this one carries none.",
        money: "Nothing ran and nothing costs anything.",
        next: "Add an Idempotency-Key header: 1 to 255 visible ASCII characters, such as a UUID, \
               one for each action, and the same one in all retries of that action.",
    },
    ProblemPage {
        name: "key-malformed",
        title: "The key cannot be read",
        statuses: &[400],
        happened: "A key was sent, but it is empty, too long, sent twice, a list, or holds \
                   characters that a key cannot have.",
        money: "Nothing ran and nothing costs anything.",
        next: "Send one Idempotency-Key header with 1 to 255 visible ASCII characters. A key with \
               a comma or a semicolon in it has to stand in double quotes. Do not retry the \
               request as it is.",
    },
    ProblemPage {
        name: "outcome-unknown",
        title: "Nobody can say whether the operation ran",
        statuses: &[502, 504, 409],
        happened: "The request was sent to the upstream, at least in part, and no complete answer \
                   came back: the connection broke, time ran out, the answer was cut short, or \
                   the gateway stopped. Onlyonce does not guess and does not send it again.",
        money: "It may have run and may be billed, once at most. Nothing further is run under \
                this key, so a retry with it costs nothing.",
        next: "Find out at the upstream whether it ran. Then an operator settles the operation \
               with onlyonce keys complete or onlyonce keys release. Sending it under a new key \
               may run it a second time. Every retry with this key gets this answer until it is \
               settled.",
    },
    ProblemPage {
        name: "operation-unfinished",
        title: "The operation stopped between two of its steps",
        statuses: &[503],
        happened: "The operation is made of steps. Some of them are done, and their results are \
                   recorded; the next one did not run, or may run again under its own key.",
        money: "What was done is done once, and is not done again by a retry with this key.",
        next: "Retry with the same key: the operation continues after its last finished step.",
    },
    ProblemPage {
        name: "upstream-unreachable",
        title: "The upstream could not be reached",
        statuses: &[502],
        happened: "No connection to the upstream could be made, or it broke before a byte of the \
                   request was written.",
        money: "Nothing ran and nothing costs anything. The key is free again.",
        next: "Retry with the same key. If it goes on, look at the upstream's address, DNS and \
               TLS settings in the configuration of the gateway.",
    },
    ProblemPage {
        name: "store-unavailable",
        title: "The store is not available",
        statuses: &[503],
        happened: "The gateway could not write down durably that this request is about to run, so \
                   it did not run it.",
        money: "This attempt ran nothing and costs nothing.",
        next: "Retry with the same key after the time in Retry-After. Operators: look at \
               the log of the gateway. After a failed flush to disk it takes \
               no new work until it is restarted.",
    },
    ProblemPage {
        name: "body-too-large",
        title: "The request body is too large",
        statuses: &[413],
        happened: "The body is larger than the gateway takes for a request with a key.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Send a smaller body, or have limits.request_body raised in the configuration of the \
               gateway.",
    },
    ProblemPage {
        name: "headers-too-large",
        title: "The request headers are too large",
        statuses: &[431],
        happened: "The head of the request is larger, or has more headers, than the gateway takes.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Send fewer or shorter headers, or have server.max_header_bytes or \
               server.max_headers raised in the configuration of the gateway.",
    },
    ProblemPage {
        name: "quota-exceeded",
        title: "Too many operations",
        statuses: &[429],
        happened: "This tenant, or the gateway as a whole, has as many operations running or \
                   recorded as the configuration allows.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Retry with the same key after the time in Retry-After. If it goes on, have the \
               named limit raised in the configuration of the gateway.",
    },
    ProblemPage {
        name: "storage-full",
        title: "The store is full",
        statuses: &[507],
        happened: "There is no room to record what the upstream would answer, so the gateway did \
                   not run the request.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Retry with the same key later. Operators: make room on the disk, raise the limit that \
               is named, or shorten the window. Where the limit is store.max_records, onlyonce keys \
               purge makes room too; a full disk takes no purge.",
    },
    ProblemPage {
        name: "credential-missing",
        title: "The credential is missing",
        statuses: &[401],
        happened: "A request with a key has to say whose key it is, and this one carries no \
                   credential.",
        money: "Nothing ran and nothing costs anything.",
        next: "Send the credential that the upstream wants, such as Authorization or x-api-key. To \
               take keys without one, set server.allow_anonymous in the configuration of the \
               gateway.",
    },
    ProblemPage {
        name: "request-timeout",
        title: "The request took too long to arrive",
        statuses: &[408],
        happened: "The head or the body of the request did not arrive whole in the time that the \
                   gateway allows.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Retry with the same key. If the body is large and the connection slow, have \
               server.body_timeout raised in the configuration of the gateway.",
    },
    ProblemPage {
        name: "bad-request",
        title: "The request is not one that the gateway takes",
        statuses: &[400],
        happened: "The head of the request breaks the rules of HTTP, or asks for something that a \
                   gateway with fixed upstreams does not do.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Correct the request as the detail says. Use the address of the gateway as the base \
               URL of your client, not as its proxy.",
    },
    ProblemPage {
        name: "route-not-found",
        title: "No route leads there",
        statuses: &[404],
        happened: "No route of the gateway matches the host and path of this request.",
        money: "Nothing was sent to any upstream and nothing costs anything.",
        next: "Correct the base URL of your client, or add a route to the configuration of the \
               gateway.",
    },
    ProblemPage {
        name: "shutting-down",
        title: "The gateway is shutting down",
        statuses: &[503],
        happened: "The gateway finishes what it has begun and takes nothing new.",
        money: "This attempt ran nothing and costs nothing. The key is not used.",
        next: "Retry with the same key after the time in Retry-After.",
    },
    ProblemPage {
        name: "upgrade-refused",
        title: "A switch of protocol cannot run under a key",
        statuses: &[400],
        happened: "The request asks to switch to another protocol, such as WebSocket, and carries a \
                   key. What follows such a switch cannot be recorded and replayed.",
        money: "Nothing ran and nothing costs anything. The key is not used.",
        next: "Send it without the key, or without the Upgrade header.",
    },
    ProblemPage {
        name: "claim-lost",
        title: "The claim is not the one that counts",
        statuses: &[409],
        happened: "A worker presented a claim, and the operation stands under another one by now, \
                   or the claim was never given out. Nothing was changed.",
        money: "What this worker did may have run beside what the holder of the other claim did. \
                Whoever holds the claim that counts decides what the operation became.",
        next: "Stop working on it. Ask for the operation to see what became of it; to work on it \
               again, begin anew with its key.",
    },
    ProblemPage {
        name: "already-settled",
        title: "The operation is settled in another way",
        statuses: &[409],
        happened: "A worker said what became of an operation, and that does not follow on what the \
                   operation is by now: its lease has passed, somebody settled it by hand, or \
                   another result was recorded. Nothing was changed.",
        money: "Whatever ran has run. What is recorded stays as it is, so retries get one answer.",
        next: "Ask for the operation to see what it is. A heartbeat or a release that finds it \
               unknown came after the lease: a result is still taken, so go on and complete, \
               or an operator settles it.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_found_by_its_name_and_no_other_is() {
        for entry in &PAGES {
            assert_eq!(page(entry.name), Some(entry));
        }
        assert_eq!(page("no-such-problem"), None);
    }

    #[test]
    fn every_page_has_all_its_parts_in_both_forms() {
        for page in &PAGES {
            for text in [page.to_html(), page.to_markdown()] {
                for part in [page.title, page.happened, page.money, page.next, page.name] {
                    assert!(!part.is_empty() && text.contains(part), "{}", page.name);
                    assert!(!part.contains(['<', '>', '&', '"']), "{part}");
                    assert!(!part.contains("  "), "{part}");
                }
                for status in page.statuses {
                    assert!(text.contains(&status.to_string()));
                }
            }
        }
    }
}
