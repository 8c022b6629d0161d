//! What is added to a request's body on its way: the wish for usage, and the backend's name for the model. The body is cut
//! and pieced together around the change, never copied or serialised anew. Where a key comes twice, the one that counts at
//! the backend is changed.
//!
//! Hot path: at most three edits, seven slices of the body's own memory.

use std::ops::Range;

use bytes::Bytes;

use super::peek::{Peek, StreamOptions, StreamOptionsForm};
use crate::upstream::Pieces;
use forebay_core::stream::Api;

/// The changes to one request's body; those for its first attempt can be others than those for its next.
#[derive(Clone, Debug, Default)]
pub struct Splice {
    edits: Vec<(Range<usize>, Bytes)>,
}

impl Splice {
    /// Asks for usage where the client did not: only a chat or completion that is streamed is changed. Returns whether it was;
    /// then the event with empty `choices` and `usage` is ours and is to be taken out of the answer.
    pub fn inject_usage(&mut self, api: Api, peek: &Peek) -> bool {
        const TRUE: Bytes = Bytes::from_static(b"true");
        if !peek.stream || !matches!(api, Api::Chat | Api::Completions) {
            return false;
        }
        let insert = |at: usize, text: &'static str| (at..at, Bytes::from_static(text.as_bytes()));
        match &peek.stream_options {
            // There is another member, `stream`, so the comma is right.
            None => self.edits.push(insert(peek.inside, r#""stream_options":{"include_usage":true},"#)),
            // A null in place: a second member of that name would be read differently by different parsers.
            Some(StreamOptions { at, form: StreamOptionsForm::Null }) => {
                self.edits.push((at.clone(), Bytes::from_static(br#"{"include_usage":true}"#)));
            }
            Some(StreamOptions { form: StreamOptionsForm::Object { include_usage: Some(usage), .. }, .. })
                if usage.on =>
            {
                return false;
            }
            Some(StreamOptions {
                at,
                form: StreamOptionsForm::Object { empty, include_usage, continuous_usage_stats },
            }) => {
                self.edits.push(match include_usage {
                    Some(usage) => (usage.at.clone(), TRUE),
                    None if *empty => insert(at.start + 1, r#""include_usage":true"#),
                    None => insert(at.start + 1, r#""include_usage":true,"#),
                });
                // Without include_usage it had no effect; with it every event would change.
                if let Some(continuous) = continuous_usage_stats.as_ref().filter(|flag| flag.on) {
                    self.edits.push((continuous.at.clone(), Bytes::from_static(b"false")));
                }
            }
        }
        true
    }

    /// Names another model in place of the one that the body names. A body that names none stays as it is: the backend takes
    /// it for its own.
    pub fn replace_model(&mut self, peek: &Peek, model: &str) {
        if let (Some(_), Some(at)) = (&peek.model, &peek.model_at) {
            self.edits.push((at.clone(), Bytes::from(serde_json::Value::from(model).to_string())));
        }
    }

    /// Puts these bytes in place of a part of the body.
    pub(super) fn replace(&mut self, at: Range<usize>, with: Bytes) {
        self.edits.push((at, with));
    }

    /// The body with the changes. `body` is the one that was peeked at.
    #[must_use]
    pub fn apply(mut self, body: &Bytes) -> Pieces {
        // Edits come in the order of their reasons, pieces in that of the body.
        self.edits.sort_by_key(|(at, _)| at.start);
        let mut slices = Vec::with_capacity(2 * self.edits.len() + 1);
        let mut done = 0;
        for (at, with) in self.edits {
            slices.extend([body.slice(done..at.start), with]);
            done = at.end;
        }
        slices.push(body.slice(done..));
        Pieces::new(slices)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::super::peek::peek;
    use super::*;

    fn spliced(body: &str, api: Api, model: Option<&str>) -> (String, bool) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let peek = peek(&body, None, None).unwrap();
        let mut splice = Splice::default();
        let injected = splice.inject_usage(api, &peek);
        if let Some(model) = model {
            splice.replace_model(&peek, model);
        }
        let pieces = splice.apply(&body);
        let whole = pieces.slices().cloned().collect::<Vec<Bytes>>().concat();
        assert_eq!(pieces.len(), whole.len() as u64);
        assert!(pieces.slices().len() <= 7);
        (String::from_utf8(whole).unwrap(), injected)
    }

    #[test]
    fn usage_is_asked_for_where_the_client_did_not() {
        for (before, after) in [
            (r#"{"stream":true}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            (
                r#" { "a":1,"stream":true,"stream_options":null}"#,
                r#" { "a":1,"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (r#"{"stream":true,"stream_options":{ }}"#, r#"{"stream":true,"stream_options":{"include_usage":true }}"#),
            (
                r#"{"stream":true,"stream_options":{"x":[1]}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"x":[1]}}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage": false}}"#,
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":false,"include_usage": true}}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true,"include_usage":null}}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}"#,
            ),
        ] {
            for api in [Api::Chat, Api::Completions] {
                assert_eq!(spliced(before, api, None), (after.to_owned(), true), "{before}");
            }
            for api in [Api::Responses, Api::Messages, Api::Other] {
                assert_eq!(spliced(before, api, None), (before.to_owned(), false), "{before}");
            }
        }
    }

    #[test]
    fn a_client_that_asked_for_usage_or_no_stream_is_left_alone() {
        for body in [
            r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
            r#"{"stream":false}"#,
            r#"{"stream":true,"stream":null}"#,
            r#"{"stream_options":{"include_usage":false}}"#,
            "{}",
        ] {
            assert_eq!(spliced(body, Api::Chat, None), (body.to_owned(), false));
        }
    }

    #[test]
    fn a_model_is_replaced_where_it_counts() {
        let (body, _) = spliced(r#"{"model":"a","x":{"model":"a"},"model" : "b"}"#, Api::Chat, Some("q\"/ü"));
        assert_eq!(body, r#"{"model":"a","x":{"model":"a"},"model" : "q\"/ü"}"#);
        assert_eq!(spliced(r#"{"model":null}"#, Api::Chat, Some("x")).0, r#"{"model":null}"#);
        assert_eq!(spliced("{}", Api::Chat, Some("x")).0, "{}");
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let text = format!(r#"{{"model":"a","stream":true,"prompt":"{}"}}"#, "x".repeat(1 << 20));
        let body = Bytes::from(text);
        let peek = peek(&body, None, None).unwrap();
        let mut splice = Splice::default();
        assert!(splice.inject_usage(Api::Completions, &peek));
        splice.replace_model(&peek, "b");
        let pieces = splice.apply(&body);
        let last = pieces.slices().last().unwrap();
        assert_eq!(last.as_ptr(), body[body.len() - last.len()..].as_ptr());
        assert_eq!(pieces.slices().len(), 5);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\"\\\\\n{}:,\u{e9}]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::vec((key(), inner), 0..3)
                    .prop_map(|members| Value::Object(Map::from_iter(members))),
            ]
        })
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![Just("model".to_owned()), Just("stream_options".to_owned()), "[a-z\"\\\\]{0,5}"]
    }

    fn options() -> impl Strategy<Value = Value> {
        let flag = || proptest::option::of(prop_oneof![Just(json!(true)), Just(json!(false)), Just(json!(null))]);
        let object = (flag(), flag(), proptest::option::of(value())).prop_map(|(usage, continuous, other)| {
            let named = [("include_usage", usage), ("continuous_usage_stats", continuous), ("other", other)];
            Value::Object(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
        });
        prop_oneof![Just(Value::Null), object]
    }

    /// A member: its key, perhaps with an escape, and its value.
    fn member() -> impl Strategy<Value = (String, Value)> {
        prop_oneof![
            2 => (prop_oneof![Just("\"stream\""), Just("\"str\\u0065am\"")], any::<bool>().prop_map(Value::from)),
            2 => (prop_oneof![Just("\"stream_options\""), Just("\"stream\\u005foptions\"")], options()),
            2 => (Just("\"model\""), prop_oneof![Just(Value::Null), "[a-z\"\\\\]{0,4}".prop_map(Value::from)]),
            1 => (Just("\"prompt\""), value()),
            1 => (Just("\"\\\"stream\""), value()),
        ]
        .prop_map(|(key, value)| (key.to_owned(), value))
    }

    /// Does on the parsed value what the splice should do.
    fn expected(mut body: Value, model: &str) -> (Value, bool) {
        let mut injected = false;
        if body["stream"] == true {
            let options = body.get("stream_options").cloned().unwrap_or(Value::Null);
            let mut options = if options.is_null() { json!({}) } else { options };
            if options.get("include_usage") != Some(&json!(true)) {
                injected = true;
                options["include_usage"] = json!(true);
                if options.get("continuous_usage_stats") == Some(&json!(true)) {
                    options["continuous_usage_stats"] = json!(false);
                }
                body["stream_options"] = options;
            }
        }
        if body["model"].as_str().is_some_and(|model| !model.is_empty()) {
            body["model"] = model.into();
        }
        (body, injected)
    }

    proptest! {
        #[test]
        fn only_what_was_meant_is_changed(
            members in proptest::collection::vec((member(), "[ \n\t]{0,2}", "[ \r]{0,2}"), 0..8),
            model in "[a-z\"\\\\\u{e9}]{0,6}",
        ) {
            let members: Vec<String> = members
                .into_iter()
                .map(|((key, value), a, b)| format!("{a}{key}{b}:{a}{value}{b}"))
                .collect();
            let body = format!(" {{{}}}\n", members.join(","));
            let original: Value = serde_json::from_str(&body).unwrap();
            let (after, injected) = spliced(&body, Api::Chat, Some(&model));
            let after: Value = serde_json::from_str(&after).unwrap();
            prop_assert_eq!((after, injected), expected(original, &model));
        }
    }
}
