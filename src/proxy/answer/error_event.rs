//! How a client learns of an error when its status is spent: an event in its API's own form.

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;

use crate::proxy::body::Message;
use forebay_core::error::{ErrorShape, Failure, Refusal, error_json};
use forebay_core::stream::Api;

/// Its stream was cut.
pub(crate) fn of_cut(api: Api, failure: Failure) -> Option<Bytes> {
    let message = format!("the stream was cut: {}", failure.label());
    event(api, failure.status(), "forebay_stream_cut", &message)
}

/// An answer of our own instead of a backend's.
pub(crate) fn of_refusal(api: Api, refusal: &Refusal) -> Option<Bytes> {
    event(api, refusal.status(), refusal.kind(), &refusal.to_string())
}

/// A backend's error answer: as it came if it was an event, else its JSON in an event.
pub(crate) fn of_answer(api: Api, status: StatusCode, body: &[u8], event_itself: Option<Bytes>) -> Option<Bytes> {
    if event_itself.is_some() {
        return event_itself;
    }
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(json) => framed(api, &json.to_string()),
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            event(api, status.as_u16(), "upstream_error", text.trim())
        }
    }
}

/// An event behind one that lacks its blank line.
pub(crate) fn after_open_event(event: &Bytes) -> Bytes {
    // A reader would take our event for more lines of the open one. The blank line closes that first.
    [b"\n\n", &event[..]].concat().into()
}

/// The last word of a stream whose task panics: told on the way out, before its channel closes uncleanly.
pub(crate) struct AtPanic {
    pub(crate) api: Api,
    pub(crate) tx: mpsc::Sender<Message>,
}

impl Drop for AtPanic {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(event) = of_refusal(self.api, &Refusal::Internal)
        {
            drop(self.tx.try_send(Message::Data(event)));
        }
    }
}

fn event(api: Api, status: u16, kind: &str, message: &str) -> Option<Bytes> {
    let json = match api {
        Api::Chat | Api::Completions | Api::Other => error_json(ErrorShape::OpenAi, status, kind, message),
        Api::Messages => error_json(ErrorShape::Anthropic, status, kind, message),
        Api::Responses => {
            serde_json::json!({"type": "error", "code": kind, "message": message, "param": null}).to_string()
        }
    };
    framed(api, &json)
}

/// An event with this data, which is one line.
fn framed(api: Api, json: &str) -> Option<Bytes> {
    match api {
        Api::Chat | Api::Completions => Some(format!("data: {json}\n\n").into()),
        Api::Messages | Api::Responses => Some(format!("event: error\ndata: {json}\n\n").into()),
        Api::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_the_middle_of_a_stream_is_told_and_ends_it_uncleanly() {
        let (tx, mut messages) = mpsc::channel(8);
        let panics = tokio::spawn(async move {
            let _told = AtPanic { api: Api::Chat, tx: tx.clone() };
            tx.send(Message::Data("data: 1\n\n".into())).await.unwrap();
            assert!(tx.is_closed(), "a bug");
        });
        assert!(panics.await.unwrap_err().is_panic());
        let mut text = String::new();
        while let Some(message) = messages.recv().await {
            let Message::Data(bytes) = message else { panic!("the end mark of a whole answer") };
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        assert!(text.starts_with("data: 1\n\ndata: {\"error\"") && text.contains("forebay_internal"), "{text}");
    }
}
