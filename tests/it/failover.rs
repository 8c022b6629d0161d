//! The failure table, row by row and column by column, for each API: what follows a failure before the first token, also behind
//! a head that went out early, and how a stream ends that breaks after it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::client::{Answer, Conn, End, post};
use crate::harness::{Forebay, Harness, free_port};
use crate::mock::{CHAT, Gate, Mock, Script, Step, answer, chunk, last_chunk, stream, stream_head};

const CHAT_PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// What vLLM says of a model that it does not serve.
const MODEL_UNKNOWN: &str =
    r#"{"error":{"message":"The model `tiny` does not exist.","type":"NotFoundError","param":"model","code":404}}"#;
/// What a vLLM says when its engine died.
const ENGINE_DEAD: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
const BAD_REQUEST: &str = r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;
/// Nobody is ejected here: a row must not change the next one.
const SETTINGS: &str = "[retry]\nbudget = { burst = 1000000, ratio = 1, per_second = 1000000 }\n\
                        [health]\nfailures = 100\n[stream]\nidle_timeout = \"200ms\"\n";

/// One of vLLM's streaming APIs.
struct Api {
    path: &'static str,
    body: &'static str,
    token: &'static str,
    end: &'static str,
    /// An error event with this message and code.
    error: fn(&str, u16) -> String,
}

fn openai_error(message: &str, code: u16) -> String {
    format!("data: {{\"error\":{{\"message\":\"{message}\",\"type\":\"x\",\"param\":null,\"code\":{code}}}}}\n\n")
}

const APIS: [Api; 4] = [
    Api {
        path: CHAT_PATH,
        body: r#"{"model":"tiny","stream":true,"messages":[]}"#,
        token: "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n",
        end: "data: [DONE]\n\n",
        error: openai_error,
    },
    Api {
        path: "/v1/completions",
        body: r#"{"model":"tiny","stream":true,"prompt":"x"}"#,
        token: "data: {\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"Hi\"}]}\n\n",
        end: "data: [DONE]\n\n",
        error: openai_error,
    },
    Api {
        path: "/v1/responses",
        body: r#"{"model":"tiny","stream":true,"input":"x"}"#,
        token: "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n",
        end: "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\"}}\n\n",
        error: |message, code| {
            format!("event: error\ndata: {{\"type\":\"error\",\"code\":\"{code}\",\"message\":\"{message}\"}}\n\n")
        },
    },
    Api {
        path: "/v1/messages",
        body: r#"{"model":"tiny","stream":true,"max_tokens":1,"messages":[]}"#,
        token: "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{}}}\n\n",
        end: "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        error: |message, code| {
            let kind = if code < 500 { "invalid_request_error" } else { "api_error" };
            format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"{message}\"}}}}\n\n"
            )
        },
    },
];

/// Who has the last word where every backend fails so.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Last {
    /// An answer of ours with this status.
    Ours(u16),
    /// The backend's, with this status.
    Theirs(u16),
}

/// A row of the table: what a backend plays, and how a request ends that meets nothing else.
struct Row {
    name: &'static str,
    script: Script,
    nothing_sent: Last,
    /// Behind an early head: ours is an error event and an unclean end, theirs an event that ends as it came.
    head_early: Last,
    /// How many attempts there are of it, with two backends.
    attempts: usize,
}

fn rows(api: &Api) -> Vec<Row> {
    use Last::{Ours, Theirs};
    let row = |name, script, nothing_sent, head_early| Row { name, script, nothing_sent, head_early, attempts: 2 };
    let event = |message, code| stream(&[(api.error)(message, code), api.end.to_owned()]);
    vec![
        row("closed", vec![Step::Close], Ours(502), Ours(502)),
        row("reset", vec![Step::Reset], Ours(502), Ours(502)),
        row("200 and EOF", vec![stream_head(), Step::Close], Ours(502), Ours(502)),
        row("200, comment and end", stream(&[": keep-alive\n\n"]), Ours(502), Ours(502)),
        row("no HTTP", vec![Step::Send(b"garbage\r\n\r\n".to_vec()), Step::Close], Ours(502), Ours(502)),
        row("500", answer(500, &[], "{\"error\":{\"code\":500}}"), Theirs(500), Ours(500)),
        row("502", answer(502, &[], "{}"), Theirs(502), Ours(502)),
        row("504", answer(504, &[], "{}"), Theirs(504), Ours(502)),
        row("503", answer(503, &[], "{}"), Theirs(503), Ours(503)),
        row("429", answer(429, &[("retry-after", "1")], "{}"), Theirs(429), Ours(429)),
        row("error event", event("boom", 500), Theirs(500), Theirs(500)),
        row("engine dead", event(ENGINE_DEAD, 500), Ours(502), Ours(502)),
        row("never a token", vec![stream_head(), Step::AwaitClose], Ours(504), Ours(504)),
        row("never a head", vec![Step::AwaitClose], Ours(504), Ours(504)),
        Row { attempts: 1, ..row("400", answer(400, &[], BAD_REQUEST), Theirs(400), Theirs(400)) },
        Row { attempts: 1, ..row("400 event", event("no", 400), Theirs(200), Theirs(200)) },
        // Last: it is out from then on.
        row("404 for our model", answer(404, &[], MODEL_UNKNOWN), Ours(502), Ours(502)),
    ]
}

/// The same on a connection that is not used again: what breaks on a reused one is another row.
fn unkept(mut script: Script) -> Script {
    for step in &mut script {
        if let Step::Send(bytes) = step
            && bytes.starts_with(b"HTTP/1.1 ")
        {
            let line = memchr::memmem::find(bytes, b"\r\n").unwrap();
            bytes.splice(line..line, *b"\r\nconnection: close");
        }
    }
    script
}

/// Two backends that play what is laid out for them, whoever comes first; then they serve well.
struct Pair {
    mocks: [Mock; 2],
    scripts: Arc<Mutex<VecDeque<Script>>>,
}

impl Pair {
    fn new(well: Script) -> Pair {
        let scripts: Arc<Mutex<VecDeque<Script>>> = Arc::default();
        let mocks = [0, 1].map(|_| {
            let (scripts, well) = (Arc::clone(&scripts), well.clone());
            Mock::replying(move |_| unkept(scripts.lock().unwrap().pop_front().unwrap_or_else(|| well.clone())))
        });
        Pair { mocks, scripts }
    }

    fn start(&self, config: &str) -> Forebay {
        Harness::new().config(config).pool("tiny", &[&self.mocks[0], &self.mocks[1]]).start()
    }

    fn play(&self, scripts: impl IntoIterator<Item = Script>) {
        *self.scripts.lock().unwrap() = scripts.into_iter().collect();
    }

    /// How many requests came.
    fn seen(&self) -> usize {
        self.mocks.iter().map(|mock| mock.seen().len()).sum()
    }
}

fn whole(api: &Api) -> String {
    [api.token, api.end].concat()
}

/// The last event of a stream, as JSON.
fn last_event(text: &str) -> Value {
    let line = text.lines().rfind(|line| line.starts_with("data: {")).unwrap_or_else(|| panic!("no event in {text}"));
    serde_json::from_str(&line[6..]).unwrap()
}

/// The type of an error of ours, in the API's own form.
fn kind_of(api: &Api, text: &str) -> String {
    let event = last_event(text);
    let named = text.contains("event: error\ndata: ");
    match api.path {
        "/v1/responses" => {
            assert!(named && event["type"] == "error", "{text}");
            event["code"].as_str().unwrap().to_owned()
        }
        "/v1/messages" => {
            assert!(named && event["type"] == "error", "{text}");
            event["error"]["type"].as_str().unwrap().to_owned()
        }
        _ => event["error"]["type"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned(),
    }
}

fn assert_ours(api: &Api, name: &str, text: &str, status: u16) {
    let kind = if status == 504 { "forebay_timeout" } else { "forebay_upstream_failed" };
    assert_eq!(kind_of(api, text), kind, "{} {name}: {text}", api.path);
}

/// Side by side: most of the time is waited for what does not come.
fn for_each_api(test: impl Fn(&Api) + Sync) {
    std::thread::scope(|scope| {
        for api in &APIS {
            scope.spawn(|| test(api));
        }
    });
}

#[test]
fn with_nothing_sent_each_failure_goes_to_the_next_backend_and_ends_as_the_table_says() {
    for_each_api(|api| {
        let pair = Pair::new(stream(&[api.token, api.end]));
        let forebay = pair.start(&format!("{SETTINGS}first_token_timeout = \"1s\""));
        for row in rows(api) {
            let context = format!("{} {}", api.path, row.name);
            if row.attempts == 2 && !row.name.contains("404") {
                pair.play([row.script.clone()]);
                let got = forebay.post(api.path, api.body);
                assert_eq!((got.status, got.end, got.text()), (200, End::Whole, whole(api)), "{context}");
                assert_eq!(got.header("x-forebay-attempts"), Some("2"), "{context}");
            }
            let before = pair.seen();
            pair.play([row.script.clone(), row.script.clone()]);
            let got = forebay.post(api.path, api.body);
            assert_eq!(pair.seen() - before, row.attempts, "{context}");
            assert_eq!(got.end, End::Whole, "{context}");
            match row.nothing_sent {
                Last::Ours(status) => {
                    assert_eq!(got.status, status, "{context}: {}", got.text());
                    let error = &got.json()["error"]["type"];
                    let expected = if status == 504 { "forebay_timeout" } else { "forebay_upstream_failed" };
                    assert_eq!(error, expected, "{context}");
                }
                Last::Theirs(status) => {
                    assert_eq!(got.status, status, "{context}: {}", got.text());
                    assert!(!got.text().contains("forebay"), "{context}: {}", got.text());
                    let busy = matches!(status, 429 | 503);
                    assert_eq!(got.header("retry-after"), busy.then_some("1"), "{context}");
                }
            }
        }
    });
}

/// The same script, once the client has the head that went out early.
fn after(gate: &Gate, script: &Script) -> Script {
    [vec![Step::Wait(gate.clone())], script.clone()].concat()
}

/// A request whose head goes out before its backend says anything.
fn early(forebay: &Forebay, api: &Api, gate: &Gate) -> Answer {
    let mut client = forebay.open();
    client.send(&post(api.path, &[("x-request-id", "mine")], api.body.as_bytes()));
    let head = client.head();
    gate.open();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(head.header("x-request-id"), Some("mine"));
    assert!(!head.headers.iter().any(|(name, _)| name.starts_with("x-forebay")), "{head:?}");
    let (body, end) = client.body(&head);
    Answer { status: head.status, headers: head.headers, body, end }
}

const WAITING: &str = ": forebay waiting\n\n";

/// What came after the comments.
fn behind_comments(answer: &Answer) -> String {
    let text = answer.text();
    assert!(text.starts_with(WAITING), "{text}");
    text.replace(WAITING, "")
}

#[test]
fn behind_an_early_head_each_failure_goes_to_the_next_backend_and_ends_as_the_table_says() {
    for_each_api(|api| {
        let pair = Pair::new(stream(&[api.token, api.end]));
        let forebay = pair.start(&format!("{SETTINGS}first_token_timeout = \"1s\"\nhead_after = \"10ms\""));
        for row in rows(api) {
            let context = format!("{} {}", api.path, row.name);
            if row.attempts == 2 && !row.name.contains("404") {
                let gate = Gate::new();
                pair.play([after(&gate, &row.script)]);
                let got = early(&forebay, api, &gate);
                assert_eq!((got.end, behind_comments(&got)), (End::Whole, whole(api)), "{context}");
            }
            let (before, gate) = (pair.seen(), Gate::new());
            pair.play([after(&gate, &row.script), row.script.clone()]);
            let got = early(&forebay, api, &gate);
            let text = behind_comments(&got);
            assert_eq!(pair.seen() - before, row.attempts, "{context}");
            match row.head_early {
                Last::Ours(status) => {
                    assert_ours(api, row.name, &text, status);
                    assert_eq!(got.end, End::Cut, "{context}: {text}");
                    assert!(!text.contains("[DONE]"), "{context}: {text}");
                }
                Last::Theirs(_) => {
                    assert!(!text.contains("forebay") && text.contains("error"), "{context}: {text}");
                    assert_eq!(got.end, End::Whole, "{context}: {text}");
                }
            }
        }
    });
}

#[test]
fn comments_go_on_while_nothing_comes_and_end_with_the_first_token() {
    let api = &APIS[0];
    let gate = Gate::new();
    let mock = Mock::playing(after(&gate, &stream(&[": keep-alive\n\n", api.token, api.end])));
    let forebay = Harness::new().config("[stream]\nhead_after = \"500ms\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(api.path, &[], api.body.as_bytes()));
    let head = client.head();
    for _ in 0..3 {
        assert_eq!(client.chunk().unwrap(), WAITING.as_bytes());
    }
    gate.open();
    let (body, end) = client.body(&head);
    let expected = format!(": keep-alive\n\n{}", whole(api));
    assert_eq!((String::from_utf8(body).unwrap(), end), (expected, End::Whole));
    let record = &forebay.record(head.header("x-request-id").unwrap());
    assert_eq!((&record["status"], &record["outcome"]), (&200.into(), &"success".into()));
    assert!(record["ttft_ms"].as_f64().unwrap() > 1500.0, "the first token, not the first byte: {record}");
}

#[test]
fn only_a_stream_of_events_has_an_early_head() {
    let gate = Gate::new();
    let mock = Mock::playing(after(&gate, &answer(200, &[], CHAT)));
    let forebay = Harness::new().config("[stream]\nhead_after = \"1ms\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(CHAT_PATH, &[], UNARY.as_bytes()));
    mock.await_requests(1);
    assert!(client.is_quiet_for(crate::client::A_WHILE));
    gate.open();
    assert_eq!(client.answer().text(), CHAT);
}

#[test]
fn behind_an_early_head_the_total_time_and_a_refused_connection_are_told() {
    for api in &APIS {
        let gate = Gate::new();
        let mock = Mock::playing(after(&gate, &vec![Step::Close]));
        let pools = format!(
            "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"http://127.0.0.1:{}\" }}, {{ url = \"{}\" }}]\n",
            free_port(),
            mock.url()
        );
        let forebay = Harness::new().config("[stream]\nhead_after = \"10ms\"").pools(&pools).start();
        let got = early(&forebay, api, &gate);
        assert_ours(api, "refused", &behind_comments(&got), 502);
        assert_eq!(got.end, End::Cut);

        let mock = Mock::playing(vec![Step::AwaitClose]);
        let config = "[stream]\nhead_after = \"10ms\"\ntotal_timeout = \"100ms\"";
        let forebay = Harness::new().config(config).pool("tiny", &[&mock]).start();
        let got = early(&forebay, api, &gate);
        assert_ours(api, "total time", &behind_comments(&got), 504);
        assert_eq!(got.end, End::Cut);
        mock.await_closes(1);
    }
}

#[test]
fn after_the_first_token_a_stream_ends_as_the_table_says() {
    for api in &APIS {
        let mock = Mock::start();
        let forebay = Harness::new().config(SETTINGS).pool("tiny", &[&mock]).start();
        let begun = |rest: Vec<Step>| [vec![stream_head(), chunk(api.token)], rest].concat();
        let cut = [
            ("without its end mark", vec![last_chunk()], "truncated"),
            ("closed", vec![Step::Close], "truncated"),
            ("in the middle of an event", vec![Step::Send(b"5\r\ndat".to_vec()), Step::Close], "truncated"),
            ("silent", vec![Step::AwaitClose], "idle_timeout"),
        ];
        for (name, script, reason) in cut {
            mock.next(begun(script));
            let got = forebay.post(api.path, api.body);
            let text = got.text();
            assert_eq!((got.status, got.end), (200, End::Cut), "{} {name}: {text}", api.path);
            assert!(text.starts_with(api.token) && !text.contains(api.end), "{} {name}: {text}", api.path);
            assert_eq!(kind_of(api, &text), "forebay_stream_cut", "{} {name}", api.path);
            assert!(text.contains(reason), "{} {name}: {text}", api.path);
        }
        for code in [400, 500] {
            let error = (api.error)("boom", code);
            mock.next(begun(vec![chunk(&error), chunk(api.end), last_chunk()]));
            let got = forebay.post(api.path, api.body);
            assert_eq!(
                (got.end, got.text()),
                (End::Whole, [api.token, &error, api.end].concat()),
                "{} {code}",
                api.path
            );
        }
        assert_eq!(forebay.metric("forebay_retries_total", &[]), 0.0, "after a token there is no other attempt");
    }
}

#[test]
fn a_unary_request_goes_to_the_next_backend_until_the_head_of_its_answer() {
    use Last::{Ours, Theirs};
    let pair = Pair::new(answer(200, &[], CHAT));
    let forebay = pair.start(SETTINGS);
    let rows = [
        ("closed", vec![Step::Close], Ours(502)),
        ("reset", vec![Step::Reset], Ours(502)),
        ("no HTTP", vec![Step::Send(b"garbage\r\n\r\n".to_vec()), Step::Close], Ours(502)),
        ("500", answer(500, &[], "{}"), Theirs(500)),
        ("502", answer(502, &[], "{}"), Theirs(502)),
        ("504", answer(504, &[], "{}"), Theirs(504)),
        ("503", answer(503, &[], "{}"), Theirs(503)),
        ("429", answer(429, &[], "{}"), Theirs(429)),
    ];
    for (name, script, last) in rows {
        pair.play([script.clone()]);
        let got = forebay.post(CHAT_PATH, UNARY);
        assert_eq!(
            (got.status, got.text().as_str(), got.header("x-forebay-attempts")),
            (200, CHAT, Some("2")),
            "{name}"
        );
        pair.play([script.clone(), script]);
        let got = forebay.post(CHAT_PATH, UNARY);
        match last {
            Ours(status) => {
                assert_eq!(got.status, status, "{name}");
                assert_eq!(got.json()["error"]["type"], "forebay_upstream_failed", "{name}");
            }
            Theirs(status) => {
                assert_eq!((got.status, got.text().as_str()), (status, "{}"), "{name}");
                assert_eq!(got.header("retry-after"), matches!(status, 429 | 503).then_some("1"), "{name}");
            }
        }
    }
}

#[test]
fn the_last_real_answer_wins_over_ours_but_not_over_two_deaths_nor_over_our_own_fault() {
    let busy = || answer(503, &[], "{}");
    let wrong = || answer(404, &[], MODEL_UNKNOWN);
    let rows: [(&str, Vec<Script>, u16); 5] = [
        ("503, then closed", vec![busy(), vec![Step::Close]], 503),
        ("closed, then 503", vec![vec![Step::Close], busy()], 503),
        ("closed, closed", vec![vec![Step::Close], vec![Step::Close]], 502),
        ("503, then our own fault", vec![busy(), wrong()], 502),
        ("500, then 503: the last", vec![answer(500, &[], "{}"), busy()], 503),
    ];
    for (name, scripts, status) in rows {
        let pair = Pair::new(answer(200, &[], CHAT));
        let forebay = pair.start(SETTINGS);
        pair.play(scripts);
        let got = forebay.post(CHAT_PATH, UNARY);
        assert_eq!(got.status, status, "{name}: {}", got.text());
        assert!(!got.text().contains("does not exist"), "{name}: {}", got.text());
    }
}

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
        let got = forebay.post(CHAT_PATH, UNARY);
        assert_eq!((got.status, got.header("x-forebay-attempts")), (500, Some("3")));
    }
    for backend in backends(&forebay) {
        assert_eq!((&backend["load"]["fails"], &backend["state"]), (&0.into(), &"healthy".into()), "{backend}");
    }
}

/// A backend that answers well, but dies of this request, on a kept-alive connection too.
fn dies_of_poison() -> Mock {
    Mock::replying(|seen| if seen.text().contains("poison") { vec![Step::Reset] } else { answer(200, &[], CHAT) })
}

#[test]
fn a_request_that_kills_whom_it_meets_is_given_to_two() {
    let mocks = [0, 1, 2].map(|_| dies_of_poison());
    let forebay = Harness::new().config(SETTINGS).pool("tiny", &[&mocks[0], &mocks[1], &mocks[2]]).start();
    let poison = r#"{"model":"tiny","messages":[{"role":"user","content":"poison"}]}"#;
    let poisoned = |mock: &Mock| mock.seen().iter().any(|seen| seen.text().contains("poison"));
    for reused in [false, true] {
        let mut client = forebay.open();
        if reused {
            for _ in 0..3 {
                assert_eq!(client.ask(&post(CHAT_PATH, &[], UNARY.as_bytes())).status, 200);
            }
        }
        let before: Vec<usize> = mocks.iter().map(|mock| mock.seen().len()).collect();
        assert_eq!(client.ask(&post(CHAT_PATH, &[], poison.as_bytes())).status, 502);
        let met = mocks.iter().zip(&before).filter(|(mock, before)| mock.seen().len() > **before).count();
        assert_eq!(met, 2, "reused connections: {reused}");
    }
    assert!(mocks.iter().any(poisoned));
}

/// The same of one that hangs: it has the request and shows no progress, until the watchdog ends that.
#[test]
fn a_request_that_hangs_whom_it_meets_is_given_to_two() {
    let mocks = [0, 1, 2].map(|_| {
        let mock = Mock::replying(|seen| {
            if seen.text().contains("poison") { vec![Step::AwaitClose] } else { answer(200, &[], CHAT) }
        });
        let figures = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.5\n";
        mock.probes(move |target| (target == "/metrics").then(|| answer(200, &[], figures)));
        mock
    });
    let config = "[scrape]\ninterval = \"50ms\"\ntimeout = \"50ms\"\nstale_after = \"2s\"\n\
                  [health]\ninterval = \"250ms\"\ntimeout = \"250ms\"\nstall_timeout = \"600ms\"";
    for stream in [false, true] {
        let forebay = Harness::new().config(config).pool("tiny", &[&mocks[0], &mocks[1], &mocks[2]]).start();
        let mut client = forebay.open();
        for _ in 0..3 {
            assert_eq!(client.ask(&post(CHAT_PATH, &[], UNARY.as_bytes())).status, 200);
        }
        let poison =
            format!(r#"{{"model":"tiny","stream":{stream},"messages":[{{"role":"user","content":"poison"}}]}}"#);
        let got = client.ask(&post(CHAT_PATH, &[], poison.as_bytes()));
        assert_eq!(got.status, 502, "{}", got.text());
        let met = mocks.iter().filter(|mock| mock.seen().last().unwrap().text().contains("poison")).count();
        assert_eq!(met, 2, "stream: {stream}");
        assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"watchdog\""]), 2.0);
    }
}
