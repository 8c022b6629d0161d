//! Backends whose probes hang, flood, flap or lie: requests are served meanwhile, figures are absent and not zero, and every
//! failed scrape is counted by its reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::harness::{DEADLINE, Forebay, Harness, eventually};
use crate::mock::{Gate, Mock, Script, Step, answer};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const PACE: &str = "[scrape]\ninterval = \"100ms\"\ntimeout = \"100ms\"\nstale_after = \"300ms\"\n\
                    [health]\ninterval = \"100ms\"\ntimeout = \"100ms\"\nejection = { base = \"100ms\", max = \"200ms\" }";

type Metrics = Arc<dyn Fn() -> Script + Send + Sync>;

/// A backend whose `/metrics` answers like this.
fn with_metrics(metrics: impl Fn() -> Script + Send + Sync + 'static) -> Mock {
    let mock = Mock::start();
    mock.probes(move |target| (target == "/metrics").then(&metrics));
    mock
}

fn text(text: &str) -> Script {
    answer(200, &[("content-type", "text/plain; version=0.0.4")], text)
}

fn scrape_errors(forebay: &Forebay, reason: &str) -> f64 {
    forebay.metric("forebay_backend_scrape_errors_total", &[&format!("reason=\"{reason}\"")])
}

fn shows(forebay: &Forebay, figure: &str) -> bool {
    forebay.metrics().lines().any(|line| line.starts_with(figure))
}

/// Sends requests, and none of them waits for a probe.
fn served(forebay: &Forebay) {
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(forebay.post(PATH, UNARY).status, 200);
        assert!(started.elapsed() < DEADLINE / 3, "a request was delayed");
    }
}

#[test]
fn metrics_that_cannot_be_read_are_counted_by_reason_and_shown_by_none() {
    let never = Gate::new();
    let hang = move || vec![Step::Wait(never.clone())];
    let declared =
        || vec![Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 52428800\r\n\r\n".to_vec()), Step::AwaitClose];
    let flood = || {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        let mut piece = format!("{:x}\r\n", 1 << 20).into_bytes();
        piece.extend(vec![b'#'; 1 << 20]);
        piece.extend(b"\r\n");
        vec![Step::Send(head), Step::Flood(piece)]
    };
    let renamed = || text("vllm:requests_now 3\nllm_requests_waiting 4\n");
    let cases: [(&str, Metrics); 6] = [
        ("timeout", Arc::new(hang)),
        ("too_large", Arc::new(declared)),
        ("too_large", Arc::new(flood)),
        ("unreadable", Arc::new(renamed)),
        ("status", Arc::new(|| answer(404, &[], "{}"))),
        ("broken", Arc::new(|| vec![Step::Reset])),
    ];
    for (reason, metrics) in cases {
        let mock = with_metrics(move || metrics());
        let forebay = Harness::new().config(PACE).pool("tiny", &[&mock]).start();
        served(&forebay);
        eventually(reason, || (scrape_errors(&forebay, reason) >= 2.0).then_some(()));
        for figure in ["forebay_backend_queue_depth{", "forebay_backend_running{", "forebay_backend_kv_usage_ratio{"] {
            assert!(!shows(&forebay, figure), "{reason}: {figure} is made up");
        }
        assert_eq!(forebay.backend(&mock)["state"], "healthy", "{reason}");
        assert!(forebay.rss_kib() < 200 << 10, "{reason}: {} KiB", forebay.rss_kib());
    }
}

#[test]
fn absurd_figures_are_absent_and_the_sound_ones_beside_them_are_not() {
    let mock = with_metrics(|| {
        text(
            "vllm:num_requests_running NaN\nvllm:num_requests_waiting -7\nvllm:kv_cache_usage_perc 0.5\n\
             vllm:iteration_tokens_total_count +Inf\n",
        )
    });
    let forebay = Harness::new().config(PACE).pool("tiny", &[&mock]).start();
    eventually("the sound figure", || shows(&forebay, "forebay_backend_kv_usage_ratio{").then_some(()));
    assert!(!shows(&forebay, "forebay_backend_queue_depth{") && !shows(&forebay, "forebay_backend_running{"));
    served(&forebay);
    let load = &forebay.backend(&mock)["load"];
    assert_eq!((load["foreign_running"].as_f64(), load["foreign_waiting"].as_f64()), (Some(0.0), Some(0.0)));
}

#[test]
fn counters_that_go_backwards_and_gauges_that_jump_harm_nothing() {
    let turn = AtomicUsize::new(0);
    let mock = with_metrics(move || {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let (steps, running) = (1_000_000 - 1000 * turn, [0, 1_000_000, 3][turn % 3]);
        text(&format!(
            "vllm:iteration_tokens_total_count {steps}\nvllm:num_requests_running {running}\n\
             vllm:num_requests_waiting 0\nvllm:prefix_cache_hits_total {steps}\n"
        ))
    });
    let well = Mock::start();
    let forebay = Harness::new().config(PACE).pool("tiny", &[&mock, &well]).start();
    eventually("a figure", || shows(&forebay, "forebay_backend_running{").then_some(()));
    for _ in 0..5 {
        served(&forebay);
    }
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
}

#[test]
fn a_health_that_flaps_loses_no_request_and_takes_the_backend_out_at_most_now_and_then() {
    let turn = AtomicUsize::new(0);
    let flapping = Mock::start();
    // Three bad answers, then three good ones, and so on.
    flapping.probes(move |target| {
        let bad = target == "/health" && (turn.fetch_add(1, Ordering::Relaxed) / 3).is_multiple_of(2);
        bad.then(|| answer(503, &[], ""))
    });
    let forebay = Harness::new().config(PACE).pool("tiny", &[&flapping]).start();
    eventually("three ejections", || {
        assert_eq!(forebay.post(PATH, UNARY).status, 200, "the only backend is tried though it is out");
        (forebay.metric("forebay_ejections_total", &["reason=\"health\""]) >= 3.0).then_some(())
    });
    forebay.await_state(&flapping, "healthy");
}

#[test]
fn a_health_that_hangs_delays_no_request() {
    let never = Gate::new();
    let hung = Mock::start();
    hung.probes(move |_| Some(vec![Step::Wait(never.clone())]));
    let well = Mock::start();
    let forebay = Harness::new().config(PACE).pool("tiny", &[&hung, &well]).start();
    served(&forebay);
    eventually("its ejection", || (forebay.backend(&hung)["state"] == "ejected").then_some(()));
    served(&forebay);
}

#[test]
fn a_backend_by_name_is_found_and_a_name_that_is_not_is_named() {
    let mock = Mock::start();
    let port = mock.url().rsplit(':').next().unwrap().to_owned();
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"http://localhost:{port}\" }}, \
         {{ url = \"http://no-such-host.invalid:{port}\" }}]"
    );
    let forebay = Harness::new().config(PACE).pools(&pools).start();
    served(&forebay);
    forebay.tells("cannot be reached from this host");
    served(&forebay);
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0, "it may have one at any time");
    assert_eq!(forebay.metric("forebay_backend_state", &["localhost", "state=\"healthy\""]), 1.0);
}

#[test]
fn a_backend_that_is_added_again_under_its_old_name_starts_anew() {
    let (first, second) = (Mock::start(), Mock::start());
    let forebay = Harness::new().config(PACE).pool("tiny", &[&first, &second]).start();
    let with_both = std::fs::read_to_string(&forebay.config).unwrap();
    let id = forebay.backend(&second)["id"].clone();
    let never = Gate::new();
    second.probes(move |target| (target == "/health").then(|| vec![Step::Wait(never.clone())]));
    forebay.await_state(&second, "ejected");
    let without = with_both.replace(&format!(", {{ url = \"{}\" }}", second.url()), "");
    assert_ne!(without, with_both);
    std::fs::write(&forebay.config, &without).unwrap();
    forebay.signal("HUP");
    let named = format!("backend=\"{}\"", second.authority());
    eventually("it is gone from the metrics", || (!forebay.metrics().contains(&named)).then_some(()));
    second.probes(|_| None);
    std::fs::write(&forebay.config, &with_both).unwrap();
    forebay.signal("HUP");
    eventually("its return", || forebay.metrics().contains(&named).then_some(()));
    assert_ne!(forebay.backend(&second)["id"], id);
    assert_eq!(forebay.backend(&second)["state"], "healthy", "what the old one did is not held against it");
    served(&forebay);
}
