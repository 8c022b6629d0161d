//! The screen of `forebay status`: text of at most 80 columns, whatever names and reasons hold.

use std::fmt::Write as _;

use super::{Arm, AskedProxy, Backend, Pool, ProxyStatus, Spread, StatusReport};
use forebay_core::units::brief_seconds;

/// The width of a line.
const WIDTH: usize = 80;
/// The width of a backend's name.
const NAME: usize = 22;

/// Everything, with what is out first.
pub(super) fn text(report: &StatusReport, colour: bool) -> String {
    let mut text = String::new();
    for (at, proxy) in report.proxies.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        one_proxy(&mut text, proxy, colour);
    }
    text
}

// Writing into a String does not fail, here and below.
fn one_proxy(text: &mut String, proxy: &AskedProxy, colour: bool) {
    let Some(live) = &proxy.live else {
        let words = proxy.error.as_deref().unwrap_or("no answer");
        wrapped(text, 0, words, Paint::of(colour, "31"));
        return;
    };
    let ready = match &live.not_ready {
        None => "ready".to_owned(),
        Some(why) => format!("NOT READY: {why}"),
    };
    let up = span(live.uptime_seconds);
    wrapped(text, 0, &format!("forebay {} at {}, up {up}, {ready}", live.version, live.listen), Paint::NONE);
    summary(text, live, colour);
    for pool in &live.pools {
        one_pool(text, pool, colour);
    }
    if live.pools.is_empty() {
        text.push_str("\nno pool yet: no backend has said which models it serves\n");
    }
}

/// One line that says what is out.
fn summary(text: &mut String, live: &ProxyStatus, colour: bool) {
    let count = |is: &dyn Fn(&&Backend) -> bool| live.backends().filter(is).count();
    let (all, out) = (live.backends().count(), count(&|backend| backend.is_out()));
    let drained = count(&|backend| backend.state == "drained");
    let mut words = format!("{} of {all} backends take requests", all - out - drained);
    let empty = live.arms().filter(|arm| arm.lacks_backends().is_some()).count();
    if out > 0 {
        _ = write!(words, ", {out} OUT");
    }
    if empty > 0 {
        _ = write!(words, ", {empty} WITHOUT BACKENDS");
    }
    if drained > 0 {
        _ = write!(words, ", {drained} drained");
    }
    wrapped(text, 0, &words, Paint::of(colour && out + empty > 0, "31"));
}

fn one_pool(text: &mut String, pool: &Pool, colour: bool) {
    let room = match pool.wait_room.waiting {
        0 => "none waits".to_owned(),
        waiting => format!("{waiting} of {} wait for a place", pool.wait_room.size),
    };
    text.push('\n');
    wrapped(text, 0, &format!("pool {} by {}, {room}", pool.model, pool.policy), Paint::of(colour, "1"));
    for arm in &pool.arms {
        one_arm(text, arm, colour);
    }
}

fn one_arm(text: &mut String, arm: &Arm, colour: bool) {
    let figures = &arm.figures.five_minutes;
    let ttft = match figures.ttft.p50_seconds {
        Some(_) => format!("TTFT {}, P95 {}", median(&figures.ttft), late(&figures.ttft)),
        None => "no TTFT yet".to_owned(),
    };
    let (share, gpus) = (arm.share * 100.0, arm.gpus);
    let noun = if gpus == 1 { "GPU" } else { "GPUs" };
    let mut words = format!("arm {}: {share:.0} % of sessions, {gpus} {noun}, {ttft}", arm.name);
    if figures.requests > 0 {
        _ = write!(words, ", {} of {} failed", figures.failed, figures.requests);
    }
    if arm.waiting > 0 {
        _ = write!(words, ", {} wait", arm.waiting);
    }
    wrapped(text, 2, &words, Paint::NONE);
    if let Some(why) = arm.lacks_backends() {
        wrapped(text, 4, &why, Paint::of(colour, "31"));
        return;
    }
    let head = ["STATE", "FOR", "PREFILL", "DECODE", "QUEUED", "TTFT", "P95"].map(str::to_owned);
    row(text, "BACKEND", &head, Paint::NONE);
    let mut backends: Vec<&Backend> = arm.backends.iter().collect();
    // The sick first, so that they are seen however many there are. The order among the others stays.
    backends.sort_by_key(|backend| (!backend.is_out(), backend.state != "drained"));
    for backend in backends {
        one_backend(text, backend, colour);
    }
}

fn one_backend(text: &mut String, backend: &Backend, colour: bool) {
    let paint = match backend.state.as_str() {
        "healthy" => Paint::NONE,
        "drained" => Paint::of(colour, "33"),
        _ => Paint::of(colour, "31"),
    };
    let figures = &backend.figures.five_minutes.ttft;
    let cells = [
        backend.state.clone(),
        span(backend.state_for_seconds),
        backend.prefilling.to_string(),
        backend.decoding.to_string(),
        backend.queue_depth.map_or("?".to_owned(), |depth| format!("{depth:.0}")),
        median(figures),
        late(figures),
    ];
    let name = backend.url.trim_start_matches("http://").trim_start_matches("https://");
    row(text, &short(name, NAME), &cells, paint);
    if let Some(reason) = &backend.reason {
        wrapped(text, 4, reason, paint);
    }
}

fn row(text: &mut String, name: &str, cells: &[String; 7], paint: Paint) {
    let [state, lasts, prefill, decode, queued, median, late] = cells;
    let state = short(state, 13);
    let line =
        format!("  {name:<NAME$} {state:<13} {lasts:>4} {prefill:>7} {decode:>6} {queued:>6} {median:>6} {late:>6}");
    _ = writeln!(text, "{}", paint.on(line.trim_end()));
}

fn median(spread: &Spread) -> String {
    spread.p50_seconds.map_or("-".to_owned(), narrow_seconds)
}

fn late(spread: &Spread) -> String {
    spread.p95_seconds.map_or("-".to_owned(), narrow_seconds)
}

/// A time in at most six columns.
fn narrow_seconds(seconds: f64) -> String {
    let text = brief_seconds(seconds);
    if text.chars().count() <= 6 { text } else { format!("{seconds:.0} s") }
}

/// A long time in at most four columns: `45s`, `12m`, `3h`, `9d`.
fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    let (count, unit) = match seconds {
        s if s < 100.0 => (s, "s"),
        s if s < 6000.0 => (s / 60.0, "m"),
        s if s < 100.0 * 3600.0 => (s / 3600.0, "h"),
        s => ((s / 86400.0).min(999.0), "d"),
    };
    format!("{:.0}{unit}", count.floor())
}

/// A text cut in its middle, so that host and port are seen.
fn short(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().map(plain).collect();
    if chars.len() <= most {
        return chars.into_iter().collect();
    }
    let head = (most - 1) / 2;
    let tail = most - 1 - head;
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

/// A character that drives no terminal, whatever a backend's answer or a person wrote.
fn plain(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// Writes words on lines of at most [`WIDTH`] columns, each behind `indent` blanks.
fn wrapped(text: &mut String, indent: usize, words: &str, paint: Paint) {
    let words: String = words.chars().map(plain).collect();
    let (mut line, most) = (String::new(), WIDTH - indent);
    let mut flush = |line: &mut String| {
        _ = writeln!(text, "{:indent$}{}", "", paint.on(line));
        line.clear();
    };
    for word in words.split_whitespace() {
        // A word that fits on no line is broken.
        for piece in word.chars().collect::<Vec<_>>().chunks(most) {
            let piece: String = piece.iter().collect();
            let needed = piece.chars().count() + usize::from(!line.is_empty());
            if !line.is_empty() && line.chars().count() + needed > most {
                flush(&mut line);
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&piece);
        }
    }
    flush(&mut line);
}

/// A colour, or none.
#[derive(Clone, Copy)]
struct Paint(Option<&'static str>);

impl Paint {
    const NONE: Paint = Paint(None);

    fn of(wanted: bool, code: &'static str) -> Paint {
        Paint(wanted.then_some(code))
    }

    fn on(self, text: &str) -> String {
        match self.0 {
            Some(code) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(p50: Option<f64>) -> serde_json::Value {
        json!({"5m": {"requests": 40, "failed": 3, "ttft": {"p50_seconds": p50, "p95_seconds": p50.map(|p| p * 3.0)}}})
    }

    fn backend(url: &str, state: &str, reason: Option<&str>) -> serde_json::Value {
        json!({"id": 0, "url": url, "state": state, "reason": reason, "state_for_seconds": 4000.0, "prefilling": 1,
            "decoding": 112, "queue_depth": null, "figures": figures(Some(123.4))})
    }

    fn report(backends: &[serde_json::Value], not_ready: Option<&str>) -> StatusReport {
        let live: ProxyStatus = serde_json::from_value(json!({
            "version": "0.1.0", "uptime_seconds": 7300.0, "listen": "127.0.0.1:8080", "not_ready": not_ready,
            "pools": [{"model": "org/a-model-with-a-name-that-is-longer-than-a-line-of-a-terminal-may-be-for-a-reader",
                "policy": "predicted_ttft", "wait_room": {"waiting": 7, "size": 512},
                "arms": [{"name": "tp2", "share": 0.5, "gpus": 2, "waiting": 7, "figures": figures(None), "backends": backends}]}],
        }))
        .unwrap();
        let proxy = AskedProxy { admin: "http://127.0.0.1:8081".to_owned(), error: None, live: Some(live) };
        StatusReport { ok: proxy.is_well(), proxies: vec![proxy] }
    }

    #[test]
    fn no_line_is_wider_than_80_columns_and_the_sick_come_first() {
        let long = "connection refused while it was asked for /health and then asked again, which it refused just as it did before";
        let backends = [
            backend("http://127.0.0.1:8001", "healthy", None),
            backend("http://gateway.of-a-data-centre.example.internal:30001/gpu-17", "misconfigured", Some(long)),
            backend("unix:/run/vllm.sock", "drained", Some(&"x".repeat(200))),
        ];
        let report = report(&backends, Some("no backend takes requests"));
        assert!(!report.ok);
        let shown = text(&report, false);
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
        let at = |part: &str| shown.find(part).unwrap_or_else(|| panic!("{part} is not in\n{shown}"));
        assert!(at("gpu-17") < at("unix:") && at("unix:") < at("127.0.0.1:8001"), "{shown}");
        assert!(at("1 of 3 backends take requests, 1 OUT, 1 drained") < at("org/a-model"));
        assert!(shown.contains("NOT READY") && shown.contains("3 of 40 failed") && shown.contains("2h"));
        assert!(text(&report, true).contains("\u{1b}[31m"));
    }

    #[test]
    fn a_drained_backend_is_well_and_an_ejected_one_is_not() {
        assert!(report(&[backend("http://a:1", "drained", Some("by ada"))], None).ok);
        for out in ["ejected", "probing", "misconfigured"] {
            assert!(!report(&[backend("http://a:1", out, None)], None).ok, "{out}");
        }
    }

    #[test]
    fn words_from_elsewhere_do_not_drive_the_terminal() {
        let shown = text(&report(&[backend("http://a:1", "ejected", Some("\u{1b}[2J\u{9b}31m gone"))], None), false);
        assert!(!shown.contains(['\u{1b}', '\u{9b}']));
    }

    #[test]
    fn times_stay_narrow() {
        for seconds in [0.0, 0.0004, 0.0999, 1.0, 99.99, 100.0, 123_456.0] {
            assert!(narrow_seconds(seconds).chars().count() <= 8, "{seconds}");
        }
        assert_eq!([0.4, 99.0, 100.0, 7300.0, 1e6, 1e12].map(span), ["0s", "99s", "1m", "2h", "11d", "999d"]);
    }
}
