//! The alerts: each is in the documents with what to do, in the words that it carries itself, and counts every outcome that it
//! should.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::harness::Harness;
use crate::mock::Mock;

/// The documents' text from this line on is made of the rules.
const GENERATED: &str = "<!-- From here on this file is generated from docker/rules/forebay.yml";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// An alert as the rules have it.
struct Alert {
    name: String,
    severity: String,
    after: String,
    summary: String,
    description: String,
    runbook: String,
}

/// A value of the rules: a word, a quoted text, or lines that are folded into one.
fn value(block: &str, key: &str) -> String {
    let marker = format!(" {key}: ");
    let rest = block.split_once(&marker).unwrap_or_else(|| panic!("{key} is not in {block}")).1;
    let (first, lines) = rest.split_once('\n').unwrap();
    if first != ">-" {
        return first.trim_matches('"').to_owned();
    }
    let indent = lines.len() - lines.trim_start().len();
    let folded = lines.lines().take_while(|line| line.len() > indent && line[..indent].trim().is_empty());
    folded.map(str::trim).collect::<Vec<_>>().join(" ")
}

fn alerts() -> Vec<Alert> {
    let rules = read("docker/rules/forebay.yml");
    let blocks = rules.split("- alert: ").skip(1);
    let alert = |block: &str| Alert {
        name: block.lines().next().unwrap().to_owned(),
        severity: value(block, "labels").trim_matches(['{', '}']).strip_prefix("severity: ").unwrap().to_owned(),
        after: value(block, "for"),
        summary: value(block, "summary"),
        description: value(block, "description"),
        runbook: value(block, "runbook"),
    };
    blocks.map(alert).collect()
}

/// The text with a word in capitals in place of each template.
fn with_words(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{ $") {
        let (template, after) = after.split_once(" }}").unwrap();
        plain.push_str(before);
        plain.push_str(&template.strip_prefix("labels.").map_or_else(|| "N".to_owned(), str::to_uppercase));
        rest = after;
    }
    plain + rest
}

fn generated(alerts: &[Alert]) -> String {
    let mut text = String::new();
    for alert in alerts {
        let Alert { name, severity, after, summary, description, runbook } = alert;
        let [summary, description, runbook] = [summary, description, runbook].map(|said| with_words(said));
        let after = if after == "0s" { "at once".to_owned() } else { format!("after {after}") };
        _ = write!(
            text,
            "\n## {name}\n\n`{severity}`, {after}: {summary}.\n\n{description}\n\n**What to do.** {runbook}\n"
        );
    }
    text
}

#[test]
fn the_document_of_alerts_says_what_the_rules_say() {
    let document = read("docs/alerts.md");
    let at = document.find(GENERATED).unwrap();
    let head = at + document[at..].find('\n').unwrap() + 1;
    let wanted = generated(&alerts());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path("docs/alerts.md"), format!("{}{wanted}", &document[..head])).unwrap();
        return;
    }
    assert!(document[head..] == wanted, "docs/alerts.md is old: UPDATE_GOLDEN=1 cargo test --test it alerts");
}

#[test]
fn every_alert_is_in_the_table_with_its_severity_what_to_do_and_an_anchor_that_exists() {
    let (operations, details) = (read("docs/operations.md"), read("docs/alerts.md"));
    let rows: Vec<Vec<&str>> = operations
        .lines()
        .filter(|line| line.starts_with("| [`Forebay"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let alerts = alerts();
    assert_eq!(rows.len(), alerts.len());
    for Alert { name, severity, .. } in &alerts {
        let link = format!("[`{name}`](alerts.md#{})", name.to_lowercase());
        let row = rows.iter().find(|row| row[0] == link).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert_eq!(row[1], severity, "{name}");
        assert!(row.len() == 4 && row[2..].iter().all(|cell| cell.len() > 10), "{row:?}");
        assert!(details.contains(&format!("\n## {name}\n")), "{name} has no heading in docs/alerts.md");
    }
}

/// Outcomes that spend nobody's error budget.
const NOT_COUNTED: &[(&str, &str)] = &[
    ("success", "it is none"),
    ("client_error", "the backend refused what the client sent"),
    ("client_left", "the client's own"),
    ("not_served", "the client asked for an adapter that nobody has"),
    ("forebay_bad_request", "the client's own"),
    ("forebay_bad_host", "the client's own"),
    ("forebay_loop", "found before a pool is"),
    ("forebay_no_model", "the client's own"),
    ("forebay_unauthorized", "the client's own"),
    ("forebay_origin_not_allowed", "the client's own"),
    ("forebay_path_not_allowed", "the client's own"),
    ("forebay_method_not_allowed", "the client's own"),
    ("forebay_unknown_model", "the client's own"),
    ("forebay_model_not_allowed", "the client's own"),
    ("forebay_rate_limited", "as its key is meant to be"),
    ("forebay_unknown_response", "the client's own"),
    ("forebay_body_timeout", "the client's own"),
    ("forebay_too_large", "the client's own"),
    ("forebay_encoded_body", "the client's own"),
    ("forebay_bodies_full", "found before a pool is"),
];

#[test]
fn the_budget_counts_every_outcome_but_those_of_clients_and_all_are_there_at_0_before_the_first_request() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let metrics = forebay.metrics();
    let series: Vec<&str> = metrics.lines().filter(|line| line.starts_with("forebay_requests_total{")).collect();
    let of_label = |line: &&str| {
        let (_, rest) = line.split_once("outcome=\"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    assert!(series.iter().all(|line| line.ends_with(" 0")), "a request was counted before there was one");
    let outcomes: BTreeSet<String> = series.iter().map(of_label).collect();
    let dashboard = read("docker/grafana/dashboards/forebay.json").replace("\\\"", "\"");
    let asks = read("docker/rules/forebay.yml") + &dashboard;
    let lists = asks.split("outcome=~\"").skip(1).map(|rest| rest.split_once('"').unwrap().0);
    let lists: BTreeSet<&str> = lists.filter(|list| list.contains("died")).collect();
    assert_eq!(lists.len(), 1, "rules and dashboard count different outcomes");
    let counted = lists.first().unwrap().split('|').map(str::to_owned);
    let known: BTreeSet<String> = counted.chain(NOT_COUNTED.iter().map(|(outcome, _)| (*outcome).to_owned())).collect();
    assert_eq!(outcomes, known, "an outcome is neither counted nor excused, or is no outcome any more");
    // So a rate over the first failure is right, in all counters that have bounded labels.
    for name in ["forebay_retries_total", "forebay_aborts_total", "forebay_ejections_total", "forebay_slo_total"] {
        let mut of_name = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        assert!(of_name.clone().count() > 1 && of_name.all(|line| line.ends_with(" 0")), "{name}");
    }
    for name in ["forebay_panics_total", "forebay_config_reloads_total", "forebay_backend_scrape_errors_total"] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name}");
    }
}
