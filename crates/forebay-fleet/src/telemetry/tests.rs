//! What `/metrics` says as a whole.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::live::{ArmRow, BackendRow, CertificateRow, Reading};
use super::metrics::{AbortPhase, Ejection, Outcome, ProbeFailure, Reload, TokenSource};
use super::*;
use crate::config::Config;
use crate::config::model::{ArmConfig, BackendConfig, Discover, DiscoverySource, DnsName, PoolConfig};
use crate::membership::controller::{Controller, Settings};
use crate::view::FleetView;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::sample::Sample;
use forebay_core::stream::Api;

fn backend_row(backend: &str) -> BackendRow {
    let readings = vec![Reading::of(&metrics::QUEUE_DEPTH, 3.0)];
    BackendRow { pool: "m".into(), arm: "tp2".into(), backend: backend.into(), readings }
}

fn arm_row() -> ArmRow {
    ArmRow { pool: "m".into(), arm: Some("tp2".into()), readings: vec![Reading::of(&metrics::ARM_GPUS, 2.0)] }
}

/// The gauges of a fleet of one backend, which was scraped with this result.
fn gauges(sample: Sample) -> (Vec<BackendRow>, Vec<ArmRow>) {
    let controller = Controller::new(Settings::from(&Config::default()), Arc::new(Telemetry::new()));
    let backend = BackendConfig::of("http://10.0.0.1:8000".parse().unwrap());
    let name = DnsName { host: "vllm".to_owned(), port: 8000 };
    let source = DiscoverySource::Dns { name, interval: Duration::from_secs(5) };
    let discover = Discover { source, https: false, max_backends: 8, key: None, gpus_each: true };
    let by_name = ArmConfig { discover: Some(discover), ..ArmConfig::of("found", Vec::new()) };
    let arms = vec![ArmConfig::of("tp2", vec![backend]), by_name];
    controller.apply(&[PoolConfig { model: "m".into(), arms, ..PoolConfig::default() }], Time::ZERO);
    let snapshot = controller.fleet().snapshot();
    let source = snapshot.pools[0].arms()[1].source.clone().unwrap();
    controller.found("m", "found", &source, Vec::new(), Time::ZERO);
    snapshot.backends().next().unwrap().load.set_sample(sample, Time::ZERO);
    FleetView::new(&snapshot, Time::ZERO).gauges()
}

/// A text in which every metric has a sample.
fn full_text() -> String {
    let telemetry = Telemetry::new();
    let a = telemetry.backend("m", "tp2", "10.0.0.1:8000");
    a.request(Api::Chat, Outcome::Success);
    a.ttft.record(0.04);
    a.output_tokens(TokenSource::Usage, 20);
    a.slo(true);
    a.abort(AbortPhase::MidStream);
    a.retry(Failure::Connect);
    a.scrape_error(ProbeFailure::Timeout);
    a.ejected(Ejection::Failures);
    a.predicted(Duration::from_millis(30), Duration::from_millis(40));
    telemetry.unrouted.request(Api::Chat, Outcome::from(&Refusal::Unauthorized));
    telemetry.process.reload(Reload::Applied);
    telemetry.client("team").requests.increment(1);
    telemetry.know_clients(["team".to_owned()].into());
    telemetry.show_certificates(vec![CertificateRow { key: "listen.tls", pool: None, not_after: 1_900_000_000 }]);
    let sample = Sample { running: Some(4.0), waiting: Some(3.0), kv_usage: Some(0.25), ..Sample::default() };
    let (backends, arms) = gauges(sample);
    telemetry.render(&backends, &arms)
}

#[test]
fn every_declared_metric_has_its_place_in_the_text() {
    let text = full_text();
    for def in ALL {
        assert!(text.contains(&format!("# HELP {} {}\n# TYPE {} ", def.name, def.help, def.name)), "{}", def.name);
    }
}

#[test]
fn the_document_names_every_metric() {
    let document = include_str!("../../../../docs/metrics.md");
    for def in ALL {
        let named = if def.name.starts_with("process_") { "`process_*`".to_owned() } else { format!("`{}`", def.name) };
        assert!(document.contains(&named), "docs/metrics.md does not name {}", def.name);
    }
}

#[test]
fn the_document_explains_every_failure() {
    let document = include_str!("../../../../docs/metrics.md");
    let (list, table) = document.split_once("| word | what happened |").unwrap();
    for word in Failure::LABELS {
        let word = format!("`{word}`");
        assert!(list.contains(&word) && table.contains(&word), "docs/metrics.md does not list and explain {word}");
    }
}

#[test]
fn the_document_for_clients_explains_every_refusal() {
    let document = include_str!("../../../../docs/clients.md");
    let (_, table) = document.split_once("| status | type | meaning |").unwrap();
    for word in labels::refusal_labels() {
        assert!(table.contains(&format!("`{word}`")), "docs/clients.md does not explain {word}");
    }
}

#[test]
fn families_are_sorted_and_written_once() {
    let text = full_text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
}

#[test]
fn removed_backends_leave_the_text_and_the_others_stay() {
    let telemetry = Telemetry::new();
    let (a, b) = (telemetry.backend("m", "tp2", "a"), telemetry.backend("m", "tp2", "b"));
    a.request(Api::Chat, Outcome::Success);
    b.request(Api::Chat, Outcome::Success);
    telemetry.unrouted.request(Api::Chat, Outcome::from(&Refusal::Unauthorized));
    let none = telemetry.backend("m", NONE, NONE);
    none.request(Api::Chat, Outcome::from(&Refusal::NoBackend("m".into())));
    let text = telemetry.render(&[backend_row("a")], &[arm_row()]);
    assert!(text.contains(r#"forebay_requests_total{pool="m",arm="tp2",backend="a",api="chat",outcome="success"} 1"#));
    assert!(!text.contains(r#"backend="b""#));
    assert!(text.contains(
        r#"forebay_requests_total{pool="none",arm="none",backend="none",api="chat",outcome="forebay_unauthorized"} 1"#
    ));
    assert!(text.contains(r#"{pool="m",arm="none",backend="none",api="chat",outcome="forebay_no_backend"} 1"#));
    let after = telemetry.render(&[], &[]);
    assert!(!after.contains(r#"pool="m""#));
}

#[test]
fn edges_of_token_times_tell_15_per_cent_apart_and_vllm_s_are_among_them() {
    // The edges of `vllm:inter_token_latency_seconds` and `vllm:request_time_per_output_token_seconds`, as vLLM 0.32 writes them.
    const VLLM: [f64; 19] =
        [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
    let telemetry = Telemetry::new();
    let backend = telemetry.backend("m", "tp2", "10.0.0.1:8000");
    backend.tpot.record(0.0165);
    backend.itl.record(0.0178);
    let text = telemetry.render(&[backend_row("10.0.0.1:8000")], &[]);
    let edges = |metric: &str| -> Vec<f64> {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}_bucket")));
        let edge = |line: &str| line.split("le=\"").nth(1)?.split('"').next()?.parse().ok();
        lines.filter_map(edge).filter(|edge: &f64| edge.is_finite()).collect()
    };
    // The lowest edge whose bucket holds the one observation.
    let bucket = |metric: &str| {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}_bucket")));
        lines.take_while(|line| line.ends_with(" 0")).count()
    };
    for metric in ["forebay_tpot_seconds", "forebay_itl_seconds"] {
        let edges = edges(metric);
        let fine: Vec<f64> = edges.iter().copied().filter(|edge| (0.001..=0.1).contains(edge)).collect();
        assert_eq!((fine.first(), fine.last()), (Some(&0.001), Some(&0.1)));
        for step in fine.windows(2) {
            assert!(step[0] < step[1] && step[1] / step[0] <= 1.15, "{metric}: {step:?}");
        }
        assert!(VLLM.iter().all(|edge| edges.contains(edge)), "{metric}: {edges:?}");
    }
    assert_ne!(bucket("forebay_tpot_seconds"), bucket("forebay_itl_seconds"), "16.5 and 17.8 ms are told apart");
}

#[test]
fn an_unknown_figure_is_absent_and_not_zero() {
    let telemetry = Telemetry::new();
    let (backends, arms) = gauges(Sample { waiting: Some(3.0), ..Sample::default() });
    let text = telemetry.render(&backends, &arms);
    assert!(!text.contains("forebay_backend_running"));
    assert!(text.contains(r#"forebay_backend_queue_depth{pool="m",arm="tp2",backend="10.0.0.1:8000"} 3"#));
}

#[test]
fn outcomes_of_every_failure_and_refusal_are_declared() {
    // `ByLabel::add` asserts in debug builds that the value is known.
    let telemetry = Telemetry::new();
    for refusal in [Refusal::Internal, Refusal::BodiesFull, Refusal::TooLarge(1), Refusal::BodyTimeout("x")] {
        telemetry.unrouted.request(Api::Chat, Outcome::from(&refusal));
    }
    let backend = BackendMetrics::unregistered();
    backend.request(Api::Chat, Outcome::from(&Refusal::Internal));
    let exhausted = Refusal::Exhausted { model: "m".into(), attempts: 3, failure: Failure::Died };
    assert_eq!(Outcome::from(&exhausted), Outcome::Failed(Failure::Died));
    backend.request(Api::Chat, Outcome::from(&exhausted));
}

#[test]
fn each_failure_is_counted_under_its_word() {
    let telemetry = Telemetry::new();
    for failure in [Failure::Connect, Failure::Busy { status: 429, retry_after: None }, Failure::ClientLeft] {
        telemetry.unrouted.request(Api::Chat, Outcome::Failed(failure));
        let labels = format!(r#"pool="none",arm="none",backend="none",api="chat",outcome="{}""#, failure.label());
        let series = format!("forebay_requests_total{{{labels}}} 1\n");
        assert!(telemetry.render(&[], &[]).contains(&series), "no {series}");
    }
}

#[test]
fn the_build_says_its_version() {
    let text = Telemetry::new().render(&[], &[]);
    assert!(text.contains(&format!("forebay_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))));
}

/// Asks promtool (Debian's package `prometheus`), where it is installed, which must find nothing to say.
#[test]
fn promtool_finds_no_fault() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        return;
    };
    promtool.stdin.take().unwrap().write_all(full_text().as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && words.is_empty(), "{words}");
}
