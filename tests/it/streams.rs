//! Streams from the head to their end.
use crate::client::post;
use crate::harness::Harness;
use crate::mock::Mock;

#[test]
fn a_stream_is_relayed() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let answer =
        forebay.open().ask(&post("/v1/chat/completions", &[], br#"{"model":"tiny","stream":true,"messages":[]}"#));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    println!("{answer:?} {:?} {:?}", mock.only(), forebay.access());
}
