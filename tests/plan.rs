//! `forebay plan` on recorded hosts (tests/fixtures/hosts): what it prints is in tests/golden/plan (`UPDATE_GOLDEN=1` rewrites
//! it), what it writes is accepted by who reads it, and no text makes it panic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use forebay_fleet::config;
use forebay_lab::plan::host::{gpu, numa, rocm, topo};
use forebay_lab::plan::model;
use proptest::prelude::*;

const HOSTS: &str = "tests/fixtures/hosts";
const MODEL: &str = "tests/fixtures/hosts/models/r1-distill-qwen-7b.json";
const NAME: &str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B";

fn plan(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    // no tool of this machine's own: a test gives the same everywhere
    command.arg("plan").args(arguments).env("PATH", "/nowhere").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The arguments that give what was recorded of a host.
fn recorded(host: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    for (flag, name) in [("--topo", "topo.txt"), ("--gpus", "gpus.xml"), ("--numa", "numa.txt")] {
        let path = format!("{HOSTS}/{host}/{name}");
        if Path::new(&path).exists() {
            arguments.extend([flag.to_owned(), path]);
        }
    }
    arguments
}

fn plan_of(host: &str, more: &[&str]) -> Output {
    let mut arguments = recorded(host);
    arguments.extend(["--model-config", MODEL, "--model", NAME].map(str::to_owned));
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    plan(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn golden(name: &str, found: &str) {
    let path = format!("tests/golden/plan/{name}");
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::create_dir_all("tests/golden/plan").unwrap();
        fs::write(&path, found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, wanted, "{path} differs; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn every_recorded_host_gives_its_plan() {
    for (host, exit, more) in [
        ("seed-2x4090-sys", 0, &[][..]),
        ("pix-2xa6000", 1, &[]),
        ("nvlink-2xh200", 0, &[]),
        ("nvlink-4xh200", 0, &[]),
        ("nvswitch-8xh100", 0, &[]),
        ("mixed-3", 0, &[]),
        ("mig-2xa100", 0, &[]),
        ("one-4090", 0, &[]),
        ("amd-4xmi210", 0, &["--gpu-memory", "64GiB"]),
    ] {
        let output = plan_of(host, more);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(exit), String::new()), "{host}");
        golden(&format!("{host}.txt"), &text(&output.stdout));
    }
}

#[test]
fn two_gpus_that_are_sys_apart_are_told_so_and_each_replica_is_bound_to_its_node() {
    let said = text(&plan_of("seed-2x4090-sys", &["--max-model-len", "8192"]).stdout);
    for part in [
        "GPU0 and GPU1 are SYS apart: every all-reduce goes over the interconnect between the CPUs",
        "CUDA_VISIBLE_DEVICES=0 numactl --cpunodebind=0 --membind=0 vllm serve",
        "CUDA_VISIBLE_DEVICES=1 numactl --cpunodebind=1 --membind=1 vllm serve",
        "CUDA_VISIBLE_DEVICES=0,1 vllm serve",
        "--port 8003 --tensor-parallel-size 2 --gpu-memory-utilization 0.9 --max-model-len 8192",
        "CUDA_VISIBLE_DEVICES belongs to the environment of the server",
        "Try tp1x2 first\n  It holds all 300 requests at once, also by the least KV cache.\n  It needs no all-reduce.",
        "What would change that:\n  - Requests that hold more than ",
        "tokens each while 300 run at once: then tp2, whose KV cache holds ",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[test]
fn p2p_that_nobody_told_and_a_kind_that_nobody_told_are_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topo.txt");
    fs::write(&path, "GPU0 GPU1 CPU Affinity\nGPU0 X PIX 0-15\nGPU1 PIX X 0-15\n").unwrap();
    let of = |memory| {
        let topo = path.to_str().unwrap();
        text(&plan(&["--topo", topo, "--gpu-memory", memory, "--model-config", MODEL]).stdout)
    };
    assert!(of("80GiB").contains("whether the GPUs read each other's memory (P2P) was not told"), "{}", of("80GiB"));
    assert!(of("80GiB").contains("This plan takes 256; --gpus tells the kind"), "{}", of("80GiB"));
    assert!(!of("24GiB").contains("--gpus tells the kind"), "{}", of("24GiB"));
    assert!(of("80GiB").contains("--max-num-seqs is 256 in all"), "{}", of("80GiB"));
}

#[test]
fn json_has_the_same_layouts() {
    let json: serde_json::Value = serde_json::from_slice(&plan_of("seed-2x4090-sys", &["--json"]).stdout).unwrap();
    let layouts = json["layouts"].as_array().unwrap();
    let names: Vec<_> = layouts.iter().map(|layout| (layout["name"].as_str().unwrap(), &layout["starts"])).collect();
    assert_eq!(names, [("tp1x2", &true.into()), ("tp2", &true.into())]);
    assert_eq!(layouts[1]["warnings"][0]["kind"], "sys");
    assert_eq!(layouts[0]["launch"][1]["environment"]["CUDA_VISIBLE_DEVICES"], "1");
}

#[test]
fn the_configuration_of_every_layout_is_right() {
    for host in ["seed-2x4090-sys", "nvswitch-8xh100", "one-4090"] {
        let json: serde_json::Value = serde_json::from_slice(&plan_of(host, &["--json"]).stdout).unwrap();
        for layout in json["layouts"].as_array().unwrap() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_str().unwrap();
            let name = layout["name"].as_str().unwrap();
            let output = plan_of(host, &["--out", path, "--layout", name]);
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            let written = folder.path().join("forebay.toml");
            let loaded = config::load(&written).unwrap_or_else(|report| panic!("{}", report.render(false)));
            let arms: Vec<_> = loaded.config.pools[0].arms.iter().map(|arm| arm.name.clone()).collect();
            assert_eq!(arms.join("+"), name);
        }
    }
}

#[cfg(feature = "bench")]
#[test]
fn the_experiment_is_right_and_has_an_arm_for_each_layout_that_uses_every_gpu() {
    for (host, arms) in [
        ("seed-2x4090-sys", &["tp1x2", "tp2"][..]),
        ("nvlink-4xh200", &["tp1x4", "tp2x2", "tp4"]),
        ("nvswitch-8xh100", &["tp1x8", "tp2x4", "tp4x2"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(plan_of(host, &["--out", folder.path().to_str().unwrap()]).status.success());
        let path = folder.path().join("experiment.toml");
        let read = forebay_lab::experiment::read(&path, &fs::read_to_string(&path).unwrap(), &|_| None);
        let experiment = read.unwrap_or_else(|report| panic!("{}", report.render(false)));
        assert_eq!(experiment.arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>(), arms);
        let env = &experiment.servers[0].env;
        assert_eq!(env, &[("CUDA_VISIBLE_DEVICES".to_owned(), "0".to_owned())]);
    }
}

#[test]
fn the_script_is_one_that_a_shell_reads() {
    let folder = tempfile::tempdir().unwrap();
    assert!(plan_of("nvswitch-8xh100", &["--out", folder.path().to_str().unwrap()]).status.success());
    let checked = Command::new("bash").arg("-n").arg(folder.path().join("launch.sh")).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn a_file_of_somebody_else_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    assert!(plan_of("one-4090", &["--out", out]).status.success());
    assert!(plan_of("one-4090", &["--out", out]).status.success(), "its own files it writes again");
    fs::write(folder.path().join("forebay.toml"), "# mine\n").unwrap();
    let output = plan_of("one-4090", &["--out", out]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("not from `forebay plan`"), "{}", text(&output.stderr));
}

#[test]
fn a_machine_without_gpus_says_what_to_do() {
    let output = plan(&[]);
    golden("no-nvidia-smi.txt", &text(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_mistake_has_its_place_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let cut = fs::read_to_string(format!("{HOSTS}/seed-2x4090-sys/topo.txt")).unwrap().replace("\tSYS\t0-15", "\t0-15");
    let path = folder.path().join("topo.txt");
    fs::write(&path, cut).unwrap();
    let output = plan(&["--topo", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr).replace(path.to_str().unwrap(), "topo.txt");
    assert_eq!(
        said,
        "forebay plan: topo.txt:2: `0-15,32-47` is not a link between GPUs\n  hint: known are X, SYS, NODE, PHB, PXB, PIX and NV \
         followed by a number\n"
    );
    let gone = plan(&["--topo", "/nowhere/topo.txt"]);
    assert!(text(&gone.stderr).contains("cannot read /nowhere/topo.txt"), "{}", text(&gone.stderr));
}

#[test]
fn a_server_that_would_sit_on_forebays_port_is_refused() {
    let output = plan_of("seed-2x4090-sys", &["--base-port", "8079"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("would listen on 8080"), "{}", text(&output.stderr));
}

/// What some text gives to every reader: anything but a panic.
fn read_all(text: &str) {
    let _ = topo::parse(text);
    let _ = rocm::parse(text);
    let _ = gpu::parse(text);
    let _ = numa::parse_numactl(text);
    let _ = model::parse(text, &model::Overrides::default());
}

fn recordings() -> Vec<String> {
    let folders = fs::read_dir(HOSTS).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.map(|file| fs::read_to_string(file).unwrap()).collect()
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(text in any::<String>()) {
        read_all(&text);
    }

    #[test]
    fn no_words_of_a_matrix_make_a_reader_panic(
        text in "(\u{1b}\\[4m|GPU[0-9]{1,3}|NIC0|NV[0-9]{0,4}|SYS|X|N/A|CPU Affinity|0-[0-9]{1,9}|OK|Link Type between two GPUs|XGMI|[ \t\n]){0,60}"
    ) {
        read_all(&text);
    }

    #[test]
    fn no_numbers_of_a_model_make_its_reader_panic(numbers in prop::collection::vec(any::<u64>(), 14)) {
        let keys = [
            "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "intermediate_size", "kv_lora_rank", "qk_rope_head_dim", "n_routed_experts", "moe_intermediate_size",
            "n_shared_experts", "first_k_dense_replace", "q_lora_rank",
        ];
        for most in [u64::MAX, 1 << 24, 1 << 10] {
            let pairs: Vec<_> = keys.iter().zip(&numbers).map(|(key, number)| format!("\"{key}\":{}", number % most)).collect();
            read_all(&format!("{{{}}}", pairs.join(",")));
        }
    }
}

/// Every recording, cut and with a piece of itself put elsewhere.
#[test]
fn no_damage_to_a_recording_makes_a_reader_panic() {
    let mut rng = fastrand::Rng::with_seed(7);
    for text in recordings() {
        let chars: Vec<char> = text.chars().collect();
        for _ in 0..60 {
            let mut at = [0; 3].map(|_| rng.usize(..=chars.len()));
            at.sort_unstable();
            let [a, b, c] = at;
            let damaged: String = chars[..a].iter().chain(&chars[b..c]).chain(&chars[a..b]).collect();
            read_all(&damaged);
        }
    }
}
