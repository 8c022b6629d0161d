//! The screen on a terminal of 80 columns that is memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::*;

fn figures(ttft: f64) -> Value {
    let spread = |p50: f64| json!({"p50_seconds": p50, "p95_seconds": 2.0 * p50});
    let of = json!({"covers_seconds": 300.0, "requests": 1500, "failed": 3, "refused": 1, "slo_met": 990, "slo_missed": 10,
        "ttft": spread(ttft), "tpot": spread(0.0165)});
    json!({"1m": of, "5m": of, "15m": of, "start": of})
}

fn backend(id: u32, name: &str, state: &str, ttft: f64) -> Value {
    let out = state != "healthy";
    json!({"id": id, "name": name, "state": state, "reason": out.then_some("no answer within 1s"), "state_for_seconds": 34.0,
        "stalled_for_seconds": out.then_some(20.0), "prefilling": 1, "decoding": 6 - id, "queue_depth": 2.0, "kv_usage": 0.42,
        "figures": figures(ttft)})
}

fn tick() -> Tick {
    let arm = |name: &str, backends: Value| json!({"name": name, "share": 0.5, "gpus": 2, "figures": figures(0.12), "backends": backends});
    let value = json!({
        "version": "0.1.0", "uptime_seconds": 7300.0, "not_ready": null, "windows": ["1m", "5m", "15m", "start"],
        "pools": [{
            "model": "meta-llama/Llama-3.1-8B-Instruct", "wait_room": {"waiting": 3},
            "sentence": "So far tp2 streams 8.0 % faster per token than tp1x2 (5.1 to 11 %, by session).",
            "arms": [
                arm("tp2", json!([backend(0, "10.0.0.1:8001", "healthy", 0.1)])),
                arm("tp1x2", json!([backend(1, "10.0.0.2:8001", "healthy", 0.3), backend(2, "10.0.0.3:8001", "ejected", 0.2)])),
            ],
        }],
        "decisions": [{"ago_seconds": 1.2, "why": "b0 (10.0.0.1:8001): soonest first token, 0.10 s before b1", "request_id": "req-17",
            "measured_seconds": 0.11}],
    });
    serde_json::from_value(value).unwrap()
}

fn state() -> TopState {
    let proxy = ProxySeen { url: "http://127.0.0.1:8081".to_owned(), tick: Some(tick()), lost: None };
    TopState { proxies: vec![proxy], sort: Sort::State, window: 1, scroll: 0 }
}

/// The rows of the screen as text.
fn rows(state: &TopState, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y| (0..80).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim_end().to_owned();
    (0..height).map(row).collect()
}

fn at(rows: &[String], text: &str) -> usize {
    rows.iter().position(|row| row.contains(text)).unwrap_or_else(|| panic!("no {text} in\n{}", rows.join("\n")))
}

#[test]
fn eighty_columns_hold_arms_backends_and_decisions() {
    let rows = rows(&state(), 24);
    println!("{}", rows.join("\n"));
    assert!(rows[0].starts_with("http://127.0.0.1:8081 · forebay 0.1.0 · up 2h"), "{}", rows[0]);
    assert_eq!(
        rows[at(&rows, "tp2   ")],
        "tp2             2   50%    5.00     120ms   240ms    16.5ms  33.0ms   99%     4"
    );
    assert!(rows[at(&rows, "So far tp2")].ends_with("by session)."));
    assert!(rows[at(&rows, "10.0.0.1:8001  ")].contains("● healthy       1    6      2  42%     200ms"));
    assert_eq!(rows[at(&rows, "for 34s")], "  for 34s: no progress: no answer within 1s; 5 requests stuck on it");
    let decision = &rows[at(&rows, "req-17")];
    assert!(decision.contains("req-17       10.0.0.1:8001: soonest first token, 0.10 s before 10."), "{decision}");
    assert!(rows[23].starts_with("q quit · s sort: state · w window: 5m"));
    // Nothing but the words at a line's end is cut.
    assert!(rows.iter().all(|row| row.chars().count() <= 80));
}

#[test]
fn who_is_out_stands_first_and_s_changes_the_order() {
    let mut state = state();
    let order = |state: &TopState| {
        let rows = rows(state, 24);
        let mut places: Vec<(usize, &str)> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
            .into_iter()
            .map(|name| (rows.iter().position(|row| row.starts_with(name)).unwrap(), name))
            .collect();
        places.sort_unstable();
        places.into_iter().map(|(_, name)| &name[7..]).collect::<String>()
    };
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(order(&state));
        state.sort = state.sort.next();
    }
    assert_eq!(seen, ["312", "123", "231", "123"]);
    assert_eq!(state.sort, Sort::State);
}

#[test]
fn a_proxy_that_is_lost_is_told_and_keeps_its_last_figures() {
    let mut state = state();
    state.proxies[0].lost = Some("connection refused".to_owned());
    state.proxies.push(ProxySeen {
        url: "http://10.0.0.9:8081".to_owned(),
        tick: None,
        lost: Some("no answer".to_owned()),
    });
    let rows = rows(&state, 30);
    assert_eq!(rows[1], "cannot be reached, trying again: connection refused");
    assert_eq!(rows[at(&rows, "10.0.0.9") + 1], "cannot be reached, trying again: no answer");
    at(&rows, "10.0.0.3:8001");
}

#[test]
fn scrolling_ends_with_the_last_line() {
    let mut state = state();
    state.scroll = u16::MAX;
    let rows = rows(&state, 8);
    assert!(rows[..7].iter().any(|row| row.contains("req-17")), "{rows:?}");
}

#[test]
fn a_small_terminal_is_no_panic() {
    let mut terminal = Terminal::new(TestBackend::new(1, 1)).unwrap();
    terminal.draw(|frame| draw(frame, &state())).unwrap();
}
