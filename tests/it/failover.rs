//! What follows a failure before the first token: who is tried next, whose answer the client gets, who is blamed.

use serde_json::Value;

use crate::client::Conn;
use crate::harness::{Forebay, Harness};
use crate::mock::{Mock, answer};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

/// The backends' parts of `/api/fleet`.
fn backends(forebay: &Forebay) -> Vec<Value> {
    let fleet = Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json();
    fleet["pools"][0]["arms"][0]["backends"].as_array().unwrap().clone()
}

#[test]
fn a_request_that_every_backend_answers_with_500_is_blamed_on_none() {
    let mocks = [0, 1, 2].map(|_| Mock::playing(answer(500, &[], "{}")));
    let forebay = Harness::new().pool("tiny", &[&mocks[0], &mocks[1], &mocks[2]]).start();
    for _ in 0..10 {
        let got = forebay.post(PATH, UNARY);
        assert_eq!((got.status, got.header("x-forebay-attempts")), (500, Some("3")));
    }
    for backend in backends(&forebay) {
        assert_eq!((&backend["load"]["fails"], &backend["state"]), (&0.into(), &"healthy".into()), "{backend}");
    }
}
