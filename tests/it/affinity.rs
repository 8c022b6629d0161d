//! Requests go back to where their prompt's beginning, or their session, was sent before.

use std::collections::HashMap;

use crate::client::post;
use crate::harness::{Forebay, Harness};
use crate::mock::Mock;

const PATH: &str = "/v1/chat/completions";

fn start(keys: &str, backends: &[&Mock]) -> Forebay {
    Harness::new().pool_with("tiny", &format!("policy = \"predicted_ttft\"\n{keys}"), backends).start()
}

/// Where a request goes whose prompt begins with `shared` and ends with its number.
fn backend(forebay: &Forebay, shared: &str, number: usize, session: Option<&str>) -> String {
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"system","content":"{shared}"}},{{"role":"user","content":"{number} {}"}}]}}"#,
        format!("{number} ").repeat(40)
    );
    let headers: Vec<(&str, &str)> = session.map(|session| ("x-session-id", session)).into_iter().collect();
    let answer = forebay.open().ask(&post(PATH, &headers, body.as_bytes()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-forebay-backend").unwrap().to_owned()
}

/// How many of 24 requests went to the backend that got most of them.
fn together(next: impl FnMut(usize) -> String) -> usize {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for place in (0..24).map(next) {
        *seen.entry(place).or_default() += 1;
    }
    seen.into_values().max().unwrap()
}

#[test]
fn prompts_with_a_common_beginning_go_to_one_backend_and_the_operator_sees_it() {
    let (a, b) = (Mock::start(), Mock::start());
    let forebay = start("", &[&a, &b]);
    let shared = "You are a careful assistant of the river authority. ".repeat(160);
    assert_eq!(together(|number| backend(&forebay, &shared, number, None)), 24);
    let expected = forebay.metric("forebay_expected_cached_tokens_total", &["pool=\"tiny\""]);
    assert!((23.0 * 1500.0..=23.0 * 2100.0).contains(&expected), "{expected}");
}

#[test]
fn a_session_goes_back_to_its_backend_and_without_affinity_it_does_not() {
    let (a, b) = (Mock::start(), Mock::start());
    let own = |number: usize| format!("{number} has a prompt of its own. ").repeat(80);
    for (keys, sticks) in [("", true), ("affinity = \"prefix\"", false), ("affinity = \"off\"", false)] {
        let forebay = start(keys, &[&a, &b]);
        let most = together(|number| backend(&forebay, &own(number), number, Some("s-1")));
        assert_eq!(most == 24, sticks, "{keys:?}: {most} of 24");
    }
}
