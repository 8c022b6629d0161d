//! Facts that this module must hold.

use super::*;

const SMALL: [SimArm; 2] =
    [SimArm { name: "pair", profile: "fast", replicas: 2 }, SimArm { name: "single", profile: "fast", replicas: 1 }];

/// Stands for the proxy: the backends themselves, in turn, each under its own labels.
fn in_turn(config: Config) -> Result<Vec<Target>, String> {
    let mut targets = Vec::new();
    for arm in &config.pools[0].arms {
        for backend in &arm.backends {
            let base = backend.url.to_string();
            targets.push(Target { arm: Some(arm.name.clone()), backend: Some(base.clone()), base });
        }
    }
    Ok(targets)
}

fn args(requests: u32, json: bool) -> Args {
    Args { requests, time_scale: 5.0, seed: 1, json }
}

#[test]
fn a_small_demo_shows_every_arm_and_backend() {
    let report = perform(&args(21, true), &SMALL, 40, in_turn).unwrap();
    assert_eq!(report.failed(), 0);
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!((&json["simulated"], &json["model"]), (&true.into(), &"sim-fast".into()));
    let arms = json["arms"].as_array().unwrap();
    assert_eq!((&arms[0]["name"], &arms[0]["gpus"], &arms[0]["requests"]), (&"pair".into(), &2.into(), &14.into()));
    assert_eq!((&arms[1]["name"], &arms[1]["gpus"], &arms[1]["requests"]), (&"single".into(), &1.into(), &7.into()));
    assert_eq!(arms[0]["input_tokens"], 1400, "prompts have exactly their length");
    assert!(arms[0]["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
    assert_eq!(json["backends"].as_array().unwrap().len(), 3);
    let text = report.text();
    for expected in ["SIMULATED", "5 x the wall clock's", "pair", "single", "tok/s/GPU", "CUDA_VISIBLE_DEVICES"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn the_proxy_gets_one_pool_with_two_equal_arms() {
    let mut seen = None;
    let refused = perform(&args(1, true), &ARMS, 1, |config| {
        seen = Some(config);
        Err("not now".to_owned())
    });
    assert_eq!(refused.err().as_deref(), Some("not now"));
    let config = seen.unwrap();
    let arms: Vec<_> =
        config.pools[0].arms.iter().map(|arm| (arm.name.as_str(), arm.gpus, arm.backends.len())).collect();
    assert_eq!(arms, [("tp1x2", 2, 2), ("tp2", 2, 1)]);
    assert_eq!(config.pools[0].arms[0].share, config.pools[0].arms[1].share);
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
