//! Facts that this module must hold.

use super::*;

/// Stands for the proxy: each arm's own servers, under its own labels.
#[expect(clippy::unnecessary_wraps, reason = "it stands for what may fail")]
fn in_turn(config: Config) -> Result<StartedProxy, String> {
    let targets = move |wanted: &str| {
        let arms = config.pools.iter().flat_map(|pool| &pool.arms).filter(|arm| arm.name == wanted);
        let target = |arm: &forebay_fleet::config::model::ArmConfig| {
            let of = |url: String| Target { arm: Some(arm.name.clone()), backend: None, base: url };
            arm.backends.iter().map(|backend| of(backend.url.to_string())).collect::<Vec<_>>()
        };
        arms.flat_map(target).collect()
    };
    Ok(StartedProxy { targets: Box::new(targets), page: None })
}

fn args(requests: u32, output: Option<PathBuf>) -> Args {
    Args { model: Model::Qwen7b, requests, time_scale: Some(5.0), seed: 1, json: true, output, live: false }
}

fn small() -> Vec<SimArm> {
    let arm = |name, replicas| SimArm { name, profile: "fast".to_owned(), replicas };
    vec![arm("S1", 1), arm("S3", 1), arm("S2", 1), arm("S4", 2)]
}

#[test]
fn a_small_demo_shows_every_arrangement_and_its_rows_can_be_compared() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let (mut text, mut json) = (String::new(), String::new());
    let failed = perform(&args(21, Some(file.clone())), &small(), 40, in_turn, |report| {
        (text, json) = (report.text(), report.json());
    });
    assert_eq!(failed, Ok(0));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let arms = json["arms"].as_array().unwrap();
    assert_eq!(arms.iter().map(|arm| arm["name"].as_str().unwrap()).collect::<Vec<_>>(), ["S1", "S3", "S2", "S4"]);
    assert_eq!(arms[3]["simulated"]["input_tokens"], 2100, "prompts have exactly their length");
    assert_eq!((&json["simulated"], &arms[0]["measured"]), (&true.into(), &serde_json::Value::Null));
    for expected in [
        "  S1: one GPU, TP=1\n",
        "  S3: TP=1 on a host with two GPUs\n",
        "  S2: two GPUs, TP=2\n",
        "  S4: two GPUs, two TP=1 replicas; not measured there\n",
        "The benchmark's figures are of 300 requests",
        "SIMULATED",
        "5 x the wall clock's",
        "S4 sim",
        "decoding at once",
        "scope: within these runs only",
        "forebay compare",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert!(!text.contains("FAILED CHECK: the load generator"), "it says so in words of its own\n{text}");
    let rows = forebay_lab::rows::row_file::read(std::io::BufReader::new(File::open(file).unwrap())).unwrap();
    assert_eq!(rows.len(), 4);
    assert!(
        rows.iter().all(|run| run.end.is_some() && run.head.as_ref().unwrap().simulated && !run.samples.is_empty())
    );
}

#[test]
fn the_proxy_gets_a_pool_for_each_arrangement_and_two_arms_for_the_live_traffic() {
    let mut seen = None;
    let args = Args { live: true, ..args(1, None) };
    let refused = perform(
        &args,
        &fleet::arms("qwen7b"),
        1,
        |config| {
            seen = Some(config);
            Err("not now".to_owned())
        },
        |_| {},
    );
    assert_eq!(refused.err().as_deref(), Some("not now"));
    let config = seen.unwrap();
    let arms: Vec<_> = config.pools.iter().flat_map(|pool| &pool.arms).collect();
    let arms: Vec<_> = arms.iter().map(|arm| (arm.name.as_str(), arm.gpus, arm.backends.len())).collect();
    assert_eq!(arms, [("S1", 1, 1), ("S3", 2, 1), ("S2", 2, 1), ("S4", 2, 2), ("tp1x2", 2, 2), ("tp2", 2, 1)]);
    let live = &config.pools[4].arms;
    assert_eq!((config.pools.len(), live[0].share), (5, live[1].share));
    assert_eq!((config.listen.address.port(), config.admin.address.port()), (0, 0));
}

#[test]
fn a_proxy_that_answers_nothing_is_named() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let late = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let target = [Target::of(format!("http://{gone}"))];
    let error = late.block_on(wait_until_ready(&Client::default(), &target)).unwrap_err();
    assert!(error.contains("not ready within 15 s") && error.contains("cannot reach"), "{error}");
}
