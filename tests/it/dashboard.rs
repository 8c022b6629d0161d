//! The live page as a browser gets it: its files and their policy, the stream of ticks with figures that are right, slow and
//! many readers, and the token.

use serde_json::Value;

use crate::client::{Answer, Conn, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::Mock;

const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// An open stream of ticks.
fn watch(forebay: &Forebay) -> Conn {
    let mut page = Conn::open(forebay.admin);
    page.send(b"GET /api/live/stream HTTP/1.1\r\nhost: admin\r\n\r\n");
    let head = page.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    page
}

/// The next tick.
fn tick(page: &mut Conn) -> Value {
    let event = String::from_utf8(page.chunk().expect("the stream goes on")).unwrap();
    serde_json::from_str(event.strip_prefix("event: tick\ndata: ").unwrap()).unwrap()
}

fn ask(forebay: &Forebay, path: &str, headers: &str) -> Answer {
    Conn::open(forebay.admin).ask(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n{headers}\r\n").as_bytes())
}

fn two_arms() -> (Forebay, [Mock; 2]) {
    let mocks = [Mock::start(), Mock::start()];
    let arm = |name, mock: &Mock| {
        format!("[[pools.arms]]\nname = \"{name}\"\ngpus = 2\nbackends = [{{ url = \"{}\" }}]\n", mock.url())
    };
    let pool = "[[pools]]\nmodel = \"tiny\"\nsession = { header = \"x-session-id\" }\n";
    let forebay = Harness::new().pools(&format!("{pool}{}{}", arm("left", &mocks[0]), arm("right", &mocks[1]))).start();
    (forebay, mocks)
}

/// A figure of each arm over the time since the start, and of its one backend.
fn figure(tick: &Value, at: &str) -> Vec<(f64, f64)> {
    let arms = tick["pools"][0]["arms"].as_array().unwrap();
    let of = |figures: &Value| figures["figures"]["start"].pointer(at).and_then(Value::as_f64).unwrap();
    arms.iter().map(|arm| (of(arm), of(&arm["backends"][0]))).collect()
}

#[test]
fn the_page_comes_whole_from_here_and_its_policy_lets_nothing_else_in() {
    let (forebay, _mocks) = two_arms();
    for (path, kind) in [
        ("/dashboard", "text/html; charset=utf-8"),
        ("/dashboard/page.css", "text/css; charset=utf-8"),
        ("/dashboard/page.js", "text/javascript; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ] {
        let answer = ask(&forebay, path, "");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        let text = answer.text().replace("http://www.w3.org/", "");
        assert!(!text.contains("https://") && !text.contains("style=") && !text.contains("onclick"), "{path}");
    }
    let browser = ask(&forebay, "/", "accept: text/html,*/*\r\n");
    assert_eq!((browser.status, browser.header("location")), (303, Some("/dashboard")));
    assert!(ask(&forebay, "/", "accept: */*\r\n").text().starts_with("forebay: admin API"));
}

#[test]
fn ticks_count_what_was_assigned_and_what_was_served() {
    let (forebay, mocks) = two_arms();
    let mut page = watch(&forebay);
    assert_eq!(figure(&tick(&mut page), "/requests"), [(0.0, 0.0), (0.0, 0.0)]);
    for session in 0..20 {
        let headers = [("x-session-id", &*session.to_string())];
        let request = post("/v1/chat/completions", &headers, STREAM.as_bytes());
        assert_eq!(forebay.open().ask(&request).status, 200);
    }
    let tick = eventually("all are counted", || {
        let tick = tick(&mut page);
        let total: f64 = figure(&tick, "/requests").iter().map(|(assigned, _)| assigned).sum();
        (total == 20.0 && forebay.access().len() == 20).then_some(tick)
    });
    for (name, at) in [("left", 0), ("right", 1)] {
        let assigned = forebay.access().iter().filter(|line| line["assigned_arm"] == name).count() as f64;
        assert_eq!(figure(&tick, "/requests")[at], (assigned, mocks[at].seen().len() as f64));
        assert_eq!(figure(&tick, "/ttft/count")[at].0, assigned);
        let tokens = forebay.metric("forebay_output_tokens_total", &[&format!("arm=\"{name}\"")]);
        assert_eq!(figure(&tick, "/output_tokens")[at].0, tokens);
    }
    let sum: f64 = forebay.access().iter().map(|line| line["ttft_ms"].as_f64().unwrap_or_default()).sum();
    let means: f64 =
        (0..2).map(|at| figure(&tick, "/ttft/count")[at].0 * figure(&tick, "/ttft/mean_seconds")[at].0 * 1000.0).sum();
    assert!((means - sum).abs() < 0.01 * sum + 0.1, "{means} {sum}");
    let decision = &tick["decisions"][0];
    assert!(decision["why"].as_str().unwrap().starts_with('b'), "{decision}");
}

#[test]
fn what_crosses_counts_for_the_arm_that_it_was_assigned_to() {
    let (forebay, mocks) = two_arms();
    mocks[0].refuse();
    for session in 0..12 {
        let request = post("/v1/chat/completions", &[("x-session-id", &*session.to_string())], STREAM.as_bytes());
        assert_eq!(forebay.open().ask(&request).status, 200);
    }
    let all = eventually("all are counted", || {
        let live = ask(&forebay, "/api/live", "").json();
        (figure(&live, "/requests").iter().map(|(assigned, _)| assigned).sum::<f64>() == 12.0).then_some(live)
    });
    let (left, right) = (figure(&all, "/requests")[0], figure(&all, "/requests")[1]);
    assert!(left.0 > 0.0 && right.0 > 0.0, "a fair split of 12 sessions leaves no arm without one: {all}");
    assert_eq!((left.1, right.1), (0.0, 12.0));
    assert_eq!(figure(&all, "/crossed")[0].0, left.0);
    assert_eq!(figure(&all, "/crossed")[1].0, 0.0);
}

#[test]
fn an_arm_and_a_backend_that_are_removed_disappear_and_come_back_new() {
    let (forebay, mocks) = two_arms();
    let was = std::fs::read_to_string(&forebay.config).unwrap();
    for session in 0..12 {
        let request = post("/v1/chat/completions", &[("x-session-id", &*session.to_string())], STREAM.as_bytes());
        assert_eq!(forebay.open().ask(&request).status, 200);
    }
    let arms = || ask(&forebay, "/api/live", "").json()["pools"][0]["arms"].as_array().unwrap().clone();
    let url = mocks[1].url();
    std::fs::write(&forebay.config, format!("[[pools]]\nmodel = \"tiny\"\n[[pools.arms]]\nname = \"right\"\ngpus = 2\nbackends = [{{ url = \"{url}\" }}]\n")).unwrap();
    forebay.signal("HUP");
    let left = eventually("one arm is left", || Some(arms()).filter(|arms| arms.len() == 1));
    assert!(left[0]["figures"]["start"]["requests"].as_u64().unwrap() > 0, "what stays is kept");
    std::fs::write(&forebay.config, was).unwrap();
    forebay.signal("HUP");
    let both = eventually("it is back", || Some(arms()).filter(|arms| arms.len() == 2));
    assert_eq!(both[0]["figures"]["start"]["requests"], 0);
    assert_eq!(both[0]["backends"][0]["figures"]["start"]["requests"], 0);
}

#[test]
fn a_page_that_does_not_read_holds_up_nobody_and_so_many_may_watch() {
    let (forebay, _mocks) = two_arms();
    let mut asleep = Conn::open_narrow(forebay.admin);
    asleep.send(b"GET /api/live/stream HTTP/1.1\r\nhost: admin\r\n\r\n");
    let mut pages: Vec<Conn> = (0..31).map(|_| watch(&forebay)).collect();
    let full = ask(&forebay, "/api/live/stream", "");
    assert_eq!((full.status, full.json()["error"]["type"].as_str()), (503, Some("forebay_too_many_pages")));
    let times: Vec<f64> = (0..3)
        .map(|_| pages.iter_mut().map(tick).fold(0.0, |_, tick| tick["uptime_seconds"].as_f64().unwrap()))
        .collect();
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
    assert_eq!(forebay.post("/v1/chat/completions", STREAM).status, 200);
    pages.pop();
    eventually("a place is free", || (ask_head(&forebay) == 200).then_some(()));
}

/// The status of one more stream.
fn ask_head(forebay: &Forebay) -> u16 {
    let mut page = Conn::open(forebay.admin);
    page.send(b"GET /api/live/stream HTTP/1.1\r\nhost: admin\r\n\r\n");
    page.head().status
}

#[test]
fn with_a_token_the_page_is_open_and_what_it_shows_is_not() {
    let mock = Mock::start();
    let config = "[admin]\ntoken_file = \"token\"";
    let forebay = Harness::new().config(config).file("token", "sesame").pool("tiny", &[&mock]).start();
    for path in ["/dashboard", "/dashboard/page.js", "/dashboard/page.css"] {
        assert_eq!(ask(&forebay, path, "").status, 200, "{path}");
    }
    for path in ["/api/live", "/api/live/stream"] {
        assert_eq!(ask(&forebay, path, "").status, 401, "{path}");
        assert_eq!(ask(&forebay, path, "authorization: Bearer wrong\r\n").status, 401, "{path}");
    }
    assert_eq!(ask(&forebay, "/api/live", "authorization: Bearer sesame\r\n").status, 200);
}

#[test]
fn a_drain_does_not_wait_for_open_pages() {
    let (mut forebay, _mocks) = two_arms();
    let mut page = watch(&forebay);
    tick(&mut page);
    forebay.signal("TERM");
    assert!(forebay.exit(crate::harness::DEADLINE).success());
}

#[test]
fn events_tell_who_went_out_and_came_back_and_what_became_of_a_configuration() {
    let (forebay, mocks) = two_arms();
    mocks[0].refuse();
    forebay.await_state(&mocks[0], "ejected");
    let was = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, "[listen\n").unwrap();
    forebay.signal("HUP");
    eventually("the file is refused", || {
        (forebay.metric("forebay_config_last_reload_successful", &[]) == 0.0).then_some(())
    });
    std::fs::write(&forebay.config, was.replace("gpus = 2", "gpus = 4")).unwrap();
    forebay.signal("HUP");
    eventually("a good one is taken", || {
        (forebay.metric("forebay_config_last_reload_successful", &[]) == 1.0).then_some(())
    });
    // Without a token a change is taken under an address only.
    let drain = format!(
        "POST /api/backends/b1/drain HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{{\"by\":\"me\"}}",
        forebay.admin
    );
    assert_eq!(Conn::open(forebay.admin).ask(drain.as_bytes()).status, 200);
    let live = ask(&forebay, "/api/live", "").json();
    let events = live["events"].as_array().unwrap();
    let told: Vec<(&str, Option<&str>)> =
        events.iter().rev().map(|event| (event["what"].as_str().unwrap(), event["backend"].as_str())).collect();
    let [out, other] = mocks.each_ref().map(|mock| mock.url().replace("http://", ""));
    let expected = [
        ("ejected", Some(out.as_str())),
        ("configuration rejected", None),
        ("configuration applied", None),
        ("drained", Some(other.as_str())),
    ];
    assert_eq!(told, expected, "{live}");
    assert!(events[2]["why"].as_str().unwrap().contains("forebay.toml:1"), "{}", events[2]);
    assert_eq!(events[0]["why"], "drained through the admin API by me");
    assert_eq!(live["pools"][0]["sentence"], "No request so far, so nothing to tell between the arms.");
}

#[test]
fn a_decision_has_the_id_of_its_request() {
    let (forebay, _mocks) = two_arms();
    let mut page = watch(&forebay);
    tick(&mut page);
    let answer = forebay.open().ask(&post("/v1/chat/completions", &[("x-request-id", "mine-17")], STREAM.as_bytes()));
    assert_eq!(answer.status, 200);
    let decision = eventually("the decision is told", || tick(&mut page)["decisions"].get(0).cloned());
    assert_eq!(decision["request_id"], "mine-17");
}
