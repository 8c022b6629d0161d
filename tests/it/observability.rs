//! What is shown agrees: the live page, the rows of the load generator and a real Prometheus say the same of the same
//! requests; and everything in `docker/` that asks Prometheus gets an answer. Prometheus is Debian's package.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forebay_lab::rows::row_file;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Conn;
use crate::harness::{Forebay, Harness, eventually, eventually_within, free_port};
use crate::sim_faults::Sim;

/// A scrape and an evaluation each second, and a debug build beside other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn docker(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(docker(path)).unwrap()
}

/// A Prometheus of its own that scrapes a Forebay, by the configuration and the rules in `docker/`, only faster.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Prometheus {
    /// None where it is not installed.
    fn start(forebay: &Forebay) -> Option<Prometheus> {
        let dir = TempDir::new().unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let rules = write("forebay.yml", read("rules/forebay.yml").replace("interval: 15s", "interval: 1s"));
        let token = write("token", "unused".to_owned());
        let config = read("prometheus.yml")
            .replace("forebay:8081", &forebay.admin.to_string())
            .replace("rules/forebay.yml", rules.to_str().unwrap())
            .replace("/run/secrets/forebay-admin-token", token.to_str().unwrap())
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("evaluation_interval: 15s", "evaluation_interval: 1s");
        assert!(config.contains(&forebay.admin.to_string()) && config.contains("scrape_interval: 1s"));
        let config = write("prometheus.yml", config);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Prometheus { child, address, _dir: dir }),
            Err(_) => {
                println!("skipped: prometheus is not installed (Debian's prometheus package)");
                None
            }
        }
    }

    /// The series of an instant query: labels and value.
    fn ask(&self, query: &str) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let request = format!("GET /api/v1/query?query={encoded} HTTP/1.1\r\nhost: prometheus\r\n\r\n");
        if std::net::TcpStream::connect(self.address).is_err() {
            return Vec::new(); // it starts
        }
        let answer = Conn::open(self.address).ask(request.as_bytes());
        if answer.status == 503 {
            return Vec::new();
        }
        let told = answer.json();
        assert_eq!(told["status"], "success", "{query}: {told}");
        let series = told["data"]["result"].as_array().unwrap().iter();
        series.map(|one| (one["metric"].clone(), one["value"][1].as_str().unwrap().parse().unwrap())).collect()
    }

    /// The one value of a query.
    fn value(&self, query: &str) -> Option<f64> {
        self.ask(query).first().map(|(_, value)| *value)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two arms of a simulated server each, slow enough that what is timed is their queue and not this machine.
fn two_arms() -> (Forebay, [Sim; 2]) {
    let slow = ["--time-scale", "0.25", "--max-num-seqs", "4"];
    let sims = [Sim::start(&slow), Sim::start(&slow)];
    let arm = |name: &str, sim: &Sim| {
        format!("[[pools.arms]]\nname = \"{name}\"\ngpus = 2\nbackends = [{{ url = \"http://{}\" }}]\n", sim.address)
    };
    let pool = "[[pools]]\nmodel = \"tiny\"\nsession = { header = \"x-session-id\" }\n";
    let forebay = Harness::new().pools(&format!("{pool}{}{}", arm("a", &sims[0]), arm("b", &sims[1]))).start();
    (forebay, sims)
}

fn load(forebay: &Forebay, sessions: usize, rows: &Path) {
    let done = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["bench", &format!("http://{}", forebay.address), "--num-prompts", &sessions.to_string()])
        .args([
            "--request-rate",
            "150",
            "--max-concurrency",
            "80",
            "--input-len",
            "30",
            "--output-len",
            "16",
            "--ignore-eos",
        ])
        .args(["--session-header", "x-session-id", "--output", rows.to_str().unwrap()])
        .env_remove("OPENAI_API_KEY")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn live(forebay: &Forebay) -> Value {
    Conn::open(forebay.admin).ask(b"GET /api/live HTTP/1.1\r\nhost: admin\r\n\r\n").json()
}

/// The TTFTs and the TPOTs of one arm's requests, in seconds, in ascending order.
#[derive(Debug, Default)]
struct Said {
    ttft: Vec<f64>,
    tpot: Vec<f64>,
}

impl Said {
    fn add(said: &mut BTreeMap<String, Said>, arm: &str, ttft: f64, tpot: f64) {
        let one = said.entry(arm.to_owned()).or_default();
        one.ttft.push(ttft);
        one.tpot.push(tpot);
        one.ttft.sort_by(f64::total_cmp);
        one.tpot.sort_by(f64::total_cmp);
    }
}

fn by_rows(file: &Path) -> BTreeMap<String, Said> {
    let runs = row_file::read(std::io::BufReader::new(std::fs::File::open(file).unwrap())).unwrap();
    let mut said = BTreeMap::new();
    for record in &runs[0].records {
        let arm = record.assigned.as_ref().or(record.arm.as_ref()).unwrap();
        let ttft = record.first_event_us.unwrap() as f64 * 1e-6;
        let tpot = (record.end_us as f64 * 1e-6 - ttft) / (record.output_tokens as f64 - 1.0);
        Said::add(&mut said, arm, ttft, tpot);
    }
    said
}

/// What the access log says, once it has this many streams. The load generator also asks for models and tokens.
fn by_log(forebay: &Forebay, streams: usize) -> BTreeMap<String, Said> {
    let records = eventually("every stream is in the access log", || {
        let mut records = forebay.access();
        records.retain(|record| record["stream"] == true);
        Some(records).filter(|records| records.len() == streams)
    });
    let mut said = BTreeMap::new();
    for record in records {
        let seconds = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key} in {record}")) * 1e-3;
        let arm = record["assigned_arm"].as_str().or(record["arm"].as_str()).unwrap();
        Said::add(&mut said, arm, seconds("ttft_ms"), seconds("tpot_ms"));
    }
    said
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len() as f64
}

fn median(of: &[f64]) -> f64 {
    of[of.len() / 2]
}

/// Compares what a client timed with what the proxy timed of the same requests. The client's clock begins before the proxy has
/// read the head, and ends after it has sent the token, by as much as a busy machine keeps either waiting: hundreds of
/// milliseconds were seen. So no client's TTFT is shorter, and how much longer it is says nothing of the proxy.
fn agrees_with_the_clients_clock(row: &Said, log: &Said) {
    // The request that tries the server is in the log alone, and is some TTFT more there.
    assert!(log.ttft.len() - row.ttft.len() <= 1, "{} {}", log.ttft.len(), row.ttft.len());
    for (at, client) in row.ttft.iter().enumerate() {
        // In ascending order, the n-th of one is no shorter than the n-th of the other, where each pair is so. A log has 1 us.
        assert!(*client >= log.ttft[at] - 2e-6, "the {at}th TTFT: {client}, {}", log.ttft[at]);
    }
    println!("  ttft median, rows: {:.5} {:.5}", median(&log.ttft), median(&row.ttft));
    println!("  tpot median, rows: {:.5} {:.5}", median(&log.tpot), median(&row.tpot));
}

fn close(what: &str, a: f64, b: f64, within: f64) {
    println!("  {what}: {a:.5} {b:.5}");
    assert!((a / b - 1.0).abs() <= within, "{what}: {a} and {b} are more than {within} apart");
}

#[test]
fn page_rows_and_prometheus_say_the_same_of_arms_split_in_half() {
    let full = std::env::var("FOREBAY_SIZE").as_deref() == Ok("full");
    let sessions = if full { 5_000 } else { 400 };
    let (forebay, _sims) = two_arms();
    let Some(prometheus) = Prometheus::start(&forebay) else { return };
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("rows.jsonl");
    load(&forebay, sessions, &file);
    let rows = by_rows(&file);
    assert_eq!(rows.values().map(|one| one.ttft.len()).sum::<usize>(), sessions);
    // The request that tries the server is in no row.
    let all = (sessions + 1) as f64;
    eventually_within(PATIENCE, "Prometheus has scraped them all", || {
        (prometheus.value("sum(forebay_ttft_seconds_count)") == Some(all)).then_some(())
    });
    let log = by_log(&forebay, sessions + 1);
    let live = live(&forebay);
    for arm in live["pools"][0]["arms"].as_array().unwrap() {
        let (name, page) = (arm["name"].as_str().unwrap(), &arm["figures"]["start"]);
        let (row, log) = (&rows[name], &log[name]);
        println!("arm {name}, {} sessions: page, then log, rows or Prometheus", row.ttft.len());
        agrees_with_the_clients_clock(row, log);
        for (metric, key, log) in [("ttft", "ttft", &log.ttft), ("tpot", "tpot", &log.tpot)] {
            let figure = |at: &str| page[key][at].as_f64().unwrap();
            let of = |suffix: &str| {
                prometheus.value(&format!("sum(forebay_{metric}_seconds_{suffix}{{arm=\"{name}\"}})")).unwrap()
            };
            assert_eq!(figure("count"), of("count"));
            assert_eq!(figure("count"), log.len() as f64);
            close(&format!("{metric} mean, Prometheus"), figure("mean_seconds"), of("sum") / of("count"), 1e-4);
            close(&format!("{metric} mean, log"), figure("mean_seconds"), mean(log), 1e-3);
            for (q, at) in [(0.5, "p50_seconds"), (0.95, "p95_seconds"), (0.99, "p99_seconds")] {
                let (low, high) = bucket(&prometheus, metric, name, q);
                let exact = figure(at);
                // The page goes between two neighbours, and Prometheus takes one of them: an edge may lie between.
                let place = q * (log.len() - 1) as f64;
                let (below, above) = (log[place.floor() as usize], log[place.ceil() as usize]);
                println!("  {metric} p{}: {exact:.5} in {below:.5} to {above:.5}, {low} to {high}", q * 100.0);
                // The page has steps of 10 µs where they are more than its 0.8 %.
                let (least, most) = (below * 0.992 - 1e-5, above * 1.008 + 1e-5);
                assert!(least <= exact && exact <= most, "{exact} is not in {below} to {above}");
                let next = log[(place.ceil() as usize + 1).min(log.len() - 1)];
                assert!(low * 0.992 <= next && below <= high * 1.008, "{below} to {next} miss {low} to {high}");
            }
        }
        let tokens = format!("sum(forebay_output_tokens_total{{arm=\"{name}\"}})");
        assert_eq!(page["output_tokens"].as_f64(), prometheus.value(&tokens));
        assert_eq!(page["crossed"], 0);
    }
}

/// The edges of the bucket in which Prometheus finds a quantile.
fn bucket(prometheus: &Prometheus, metric: &str, arm: &str, q: f64) -> (f64, f64) {
    let found = prometheus
        .value(&format!("histogram_quantile({q}, sum by (le) (forebay_{metric}_seconds_bucket{{arm=\"{arm}\"}}))"))
        .unwrap();
    let series = prometheus.ask(&format!("sum by (le) (forebay_{metric}_seconds_bucket{{arm=\"{arm}\"}})"));
    let mut edges: Vec<f64> =
        series.iter().map(|(labels, _)| labels["le"].as_str().unwrap().parse().unwrap()).collect();
    edges.sort_by(f64::total_cmp);
    let high = edges.iter().position(|edge| found <= *edge).unwrap();
    (if high == 0 { 0.0 } else { edges[high - 1] }, edges[high])
}

/// Every query of the dashboard: its panels, its variables, its annotations.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/forebay.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| {
            let expr = target["expr"].as_str().unwrap();
            expr.replace("$pool", ".*").replace("$job", ".*").replace("$__rate_interval", "1m")
        })
        .collect()
}

/// The names of metrics in some text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let metric = |word: &&str| {
        ["forebay_", "pool:forebay_", "pool_arm:forebay_", "pool_backend:forebay_", "process_"]
            .iter()
            .any(|begin| word.starts_with(begin))
    };
    words.filter(metric).map(str::to_owned).collect()
}

#[test]
fn every_query_of_dashboard_and_rules_has_an_answer_from_a_real_prometheus() {
    let (forebay, _sims) = two_arms();
    let Some(prometheus) = Prometheus::start(&forebay) else { return };
    let dir = TempDir::new().unwrap();
    eventually_within(PATIENCE, "a first scrape", || prometheus.value("sum(forebay_arm_gpus)"));
    load(&forebay, 200, &dir.path().join("rows.jsonl"));
    let queries = dashboard_queries();
    assert!(queries.len() > 30, "{} queries", queries.len());
    for query in &queries {
        eventually_within(PATIENCE, query, || {
            prometheus.ask(query).iter().any(|(_, value)| value.is_finite()).then_some(())
        });
    }
    // What rules and alerts are made of is there; the alerts' own answer is that nothing is wrong.
    let rules = read("rules/forebay.yml");
    let recorded = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter(|line| ["expr:", "- record:", "(", "/"].iter().any(|begin| line.trim_start().starts_with(begin)));
    // Only where there are certificates, or sources of backends: tls.rs and dns.rs read them.
    let settings = ["forebay_certificate_expiry_timestamp_seconds", "forebay_discovery_errors_total"];
    // Within quotes are the values of labels, such as the refusals that an outcome names.
    let unquoted = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let all: BTreeSet<String> =
        recorded.flat_map(|line| names(&unquoted(line))).filter(|name| !settings.contains(&name.as_str())).collect();
    assert!(all.len() > 30, "{all:?}");
    for name in &all {
        eventually_within(PATIENCE, name, || (!prometheus.ask(&format!("count({name})")).is_empty()).then_some(()));
    }
    let firing = prometheus.ask("ALERTS{alertstate=\"firing\"}");
    assert!(firing.is_empty(), "{firing:?}");
    println!("{} queries and {} metrics have an answer", queries.len(), all.len());
}

#[test]
fn the_dashboard_asks_for_no_recorded_name_and_for_no_job_or_datasource_but_the_chosen() {
    let text = read("grafana/dashboards/forebay.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "job", "pool"]);
    assert_eq!(text.matches("\"uid\": \"prometheus\"").count(), 0, "a datasource that is not the chosen one");
    for query in dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array()).flatten()
    {
        let expr = query["expr"].as_str().unwrap();
        assert!(!names(expr).iter().any(|name| name.contains(':')), "needs the rules: {expr}");
        assert!(expr.contains("job=~\"$job\"") || expr.contains("ALERTS"), "takes every job: {expr}");
        assert!(!expr.contains("job=\""), "a job by name: {expr}");
    }
    let wall: Vec<&str> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|panel| panel["type"] == "stat")
        .map(|panel| panel["title"].as_str().unwrap())
        .collect();
    assert_eq!(
        wall,
        ["Backends that take requests", "Healthy", "SLO met, 5 min", "TTFT P95 over its limit", "Alerts firing"]
    );
}

#[test]
fn a_stopped_server_makes_the_stall_alert_fire_and_a_running_one_ends_it() {
    let sims = [Sim::start(&["--time-scale", "0.2"]), Sim::start(&["--time-scale", "0.2"])];
    let backends = sims.each_ref().map(|sim| format!("{{ url = \"http://{}\" }}", sim.address)).join(", ");
    // Default settings: what an operator has.
    let forebay = Harness::new().pools(&format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{backends}]\n")).start();
    let Some(prometheus) = Prometheus::start(&forebay) else { return };
    eventually_within(PATIENCE, "a first scrape", || prometheus.value("sum(forebay_arm_gpus)"));
    let stopped = sims[0].address.to_string();
    let firing = || {
        let alerts = prometheus.ask("ALERTS{alertname=\"ForebayStall\",alertstate=\"firing\"}");
        alerts.into_iter().map(|(labels, _)| labels["backend"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(firing(), Vec::<String>::new());
    signal(&sims[0], "STOP");
    eventually_within(2 * PATIENCE, "ForebayStall fires", || (firing() == [stopped.as_str()]).then_some(()));
    signal(&sims[0], "CONT");
    eventually_within(2 * PATIENCE, "it ends", || firing().is_empty().then_some(()));
}

fn signal(sim: &Sim, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(sim.child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// The words of the alerts' texts that look like keys of the configuration, metrics or labels.
fn named_in_texts(rules: &str) -> BTreeSet<String> {
    let texts = rules.split("annotations:").skip(1).map(|rest| rest.split("- alert:").next().unwrap());
    let words = texts.flat_map(|text| {
        let bare =
            text.split("{{").map(|part| part.split_once("}}").map_or(part, |(_, after)| after)).collect::<String>();
        bare.split(|c: char| !(c.is_ascii_alphanumeric() || "_./".contains(c)))
            .map(|word| word.trim_matches(['.', '/']).to_owned())
            .collect::<Vec<_>>()
    });
    let lower = |word: &str| word.starts_with(|c: char| c.is_ascii_lowercase());
    words.filter(|word| lower(word) && !word.contains('/') && word.contains(['_', '.'])).collect()
}

#[test]
fn every_key_and_metric_that_a_runbook_names_exists() {
    let document = std::fs::read_to_string(docker("../docs/configuration.md")).unwrap();
    let (mut keys, mut section) = (BTreeSet::new(), String::new());
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("## `").or_else(|| line.strip_prefix("### `")) {
            title.trim_end_matches('`').trim_matches(['[', ']']).clone_into(&mut section);
        } else if let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
            keys.extend([key.to_owned(), format!("{section}.{key}")]);
            // A pool's own keys are written without the pool.
            keys.extend(section.strip_prefix("pools.").map(|section| format!("{section}.{key}")));
        }
    }
    assert!(keys.contains("health.stall_timeout") && keys.contains("wait_room.size"), "{keys:?}");
    let metrics = std::fs::read_to_string(docker("../docs/metrics.md")).unwrap();
    // What is Prometheus's, a file's name, or a policy.
    let others = ["credentials_file", "forebay.toml", "least_inflight"];
    for word in named_in_texts(&read("rules/forebay.yml")) {
        let known = keys.contains(&word) || metrics.contains(&format!("`{word}`")) || others.contains(&word.as_str());
        assert!(known, "a runbook names {word}, which is no key of docs/configuration.md and no metric");
    }
    assert!(named_in_texts("annotations:\n  x: raise `health.stal_timeout` or a.b_c").contains("health.stal_timeout"));
}

#[test]
fn promtool_finds_nothing_wrong_with_configuration_and_rules_and_each_alert_fires_on_its_fault() {
    for args in [["check", "rules", "rules/forebay.yml"], ["test", "rules", "rules/forebay.test.yml"]] {
        let path = docker(args[2]);
        let Ok(said) = Command::new("promtool").args(&args[..2]).arg(&path).output() else {
            println!("skipped: promtool is not installed (Debian's prometheus package has it)");
            return;
        };
        let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success() && !text.contains("FAILED"), "{text}");
    }
    let config =
        Command::new("promtool").args(["check", "config", "--syntax-only"]).arg(docker("prometheus.yml")).output();
    assert!(config.unwrap().status.success());
    let (rules, tests) = (read("rules/forebay.yml"), read("rules/forebay.test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = tests.contains(&format!("{{labels: 'ALERTS{{alertname=\"{alert}\""));
        assert!(fires, "no unit test makes {alert} fire");
    }
    for said in ["summary:", "description:", "runbook:"] {
        assert_eq!(rules.matches(said).count(), rules.matches("- alert:").count(), "{said}");
    }
}

#[test]
fn what_the_compose_files_name_is_there_and_their_configurations_are_good() {
    for file in ["compose.demo.yml", "compose.vllm.yml"] {
        let text = read(file);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let mounts = line.split(['"', ' ']).filter_map(|word| word.strip_prefix("./"));
            for path in mounts.filter_map(|mount| mount.split(':').next()).filter(|path| *path != "admin.token") {
                assert!(docker(path).exists(), "{file} names docker/{path}");
            }
        }
        for port in text.lines().filter(|line| line.trim_start().starts_with("ports:")) {
            assert!(port.matches("127.0.0.1:").count() == port.matches('"').count() / 2, "{file}: {port}");
        }
    }
    for file in ["forebay.demo.toml", "forebay.vllm.toml"] {
        let dir = TempDir::new().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "sesame").unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, read(file).replace("/run/secrets/forebay-admin-token", token.to_str().unwrap())).unwrap();
        let said = Command::new(env!("CARGO_BIN_EXE_forebay")).arg("check").arg(&path).output().unwrap();
        assert!(said.status.success(), "{file}: {}", String::from_utf8_lossy(&said.stderr));
    }
}
