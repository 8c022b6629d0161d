//! What a plan gives to be run: a configuration of Forebay, an experiment, a script. Pure: texts come out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::host::Vendor;
use super::layout::{LayoutArm, LayoutServer};
use super::{Plan, Planned};

#[derive(Serialize)]
struct Configuration<'a> {
    pools: [Pool<'a>; 1],
}

#[derive(Serialize)]
struct Pool<'a> {
    model: &'a str,
    arms: Vec<PoolArm<'a>>,
}

#[derive(Serialize)]
struct PoolArm<'a> {
    name: &'a str,
    share: usize,
    gpus: usize,
    backends: Vec<Backend>,
}

#[derive(Serialize)]
struct Backend {
    url: String,
}

fn url(server: &LayoutServer) -> String {
    format!("http://127.0.0.1:{}", server.port)
}

/// A configuration of Forebay for a layout: one pool, an arm for each of its arms, sessions shared by GPUs.
#[must_use]
pub fn configuration(planned: &Planned, model: &str) -> String {
    let backends = |arm: &LayoutArm| arm.servers.iter().map(|server| Backend { url: url(server) }).collect();
    let arms = planned.layout.arms.iter().map(|arm| {
        let gpus = arm.gpus();
        PoolArm { name: &arm.name, share: gpus, gpus, backends: backends(arm) }
    });
    let written = Configuration { pools: [Pool { model, arms: arms.collect() }] };
    let body = toml::to_string(&written).expect("a table of strings, numbers and tables can be written");
    let mut text = format!(
        "# Forebay before the layout {}, by `forebay plan`. The servers, each started on the host of the GPUs:\n#\n",
        planned.layout.name
    );
    for line in &planned.launch {
        writeln!(text, "#   {}", line.line()).expect("writing to a String cannot fail");
    }
    text.push_str("#\n#   forebay check forebay.toml && forebay serve --config forebay.toml\n\n");
    text + &body
}

#[derive(Serialize)]
struct ExperimentFile<'a> {
    name: &'static str,
    model: &'a str,
    starts: u32,
    record: [&'static str; 1],
    load: Requests,
    servers: Vec<ServerEntry<'a>>,
    arms: Vec<ArmEntry<'a>>,
}

#[derive(Serialize)]
struct Requests {
    num_prompts: u64,
    input_len: u64,
    output_len: u64,
    request_rate: &'static str,
}

#[derive(Serialize)]
struct ServerEntry<'a> {
    name: String,
    url: String,
    command: &'a [String],
    env: &'a BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct ArmEntry<'a> {
    name: &'a str,
    gpus: usize,
    servers: Vec<String>,
}

/// Servers are started anew so often in an experiment: with five a side, a difference of 10 % is found where runs of one server
/// differ by 3 %.
const STARTS: u32 = 5;

/// An experiment for `forebay compare` over the layouts that start, use every GPU and have one arm: each is an arm, and they take
/// turns on the same GPUs. `None` where fewer than two do.
#[must_use]
pub fn experiment(plan: &Plan) -> Option<String> {
    let whole = |planned: &&Planned| planned.layout.arms.len() == 1 && planned.layout.idle.is_empty();
    let compared: Vec<&Planned> = plan.starting().filter(whole).collect();
    if compared.len() < 2 {
        return None;
    }
    let named = |arm: &LayoutArm, at: usize| format!("{}-{}", arm.name, at + 1);
    let mut written = ExperimentFile {
        name: "layouts",
        model: &plan.name,
        starts: STARTS,
        record: [if plan.vendor == Vendor::Nvidia { "nvidia-smi topo -m" } else { "rocm-smi --showtopo" }],
        load: Requests {
            num_prompts: plan.load.concurrency,
            input_len: plan.load.input,
            output_len: plan.load.output,
            request_rate: "inf",
        },
        servers: Vec::new(),
        arms: Vec::new(),
    };
    for planned in &compared {
        let arm = &planned.layout.arms[0];
        for (at, (server, launch)) in arm.servers.iter().zip(&planned.launch).enumerate() {
            let (command, env) = (launch.command.as_slice(), &launch.environment);
            written.servers.push(ServerEntry { name: named(arm, at), url: url(server), command, env });
        }
        let servers = (0..arm.servers.len()).map(|at| named(arm, at)).collect();
        written.arms.push(ArmEntry { name: &arm.name, gpus: arm.gpus(), servers });
    }
    let body = toml::to_string(&written).expect("a table of strings, numbers and tables can be written");
    let head = "# Which layout is better for this load, by `forebay plan`. The arms take turns on the same GPUs:\n#\n#   forebay \
        compare experiment.toml\n\n";
    Some(head.to_owned() + &body)
}

/// A script that starts the servers of one of the layouts and ends them with itself.
#[must_use]
pub fn script(layouts: &[&Planned], vendor: Vendor) -> String {
    let variable = vendor.variable();
    let names: Vec<&str> = layouts.iter().map(|planned| planned.layout.name.as_str()).collect();
    let mut text = format!(
        "#!/usr/bin/env bash\n\
        # Starts the vLLM servers of one layout, by `forebay plan`: {}. Ctrl-C ends them.\n\
        # {variable} belongs to each server's own environment, not to Forebay's, nor to a client's.\n\
        set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n\ncase ${{1:-{}}} in\n",
        names.join(" | "),
        names.first().copied().unwrap_or_default()
    );
    for planned in layouts {
        writeln!(text, "{})", planned.layout.name).expect("writing to a String cannot fail");
        for line in &planned.launch {
            writeln!(text, "    {} &", line.line()).expect("writing to a String cannot fail");
        }
        text.push_str("    ;;\n");
    }
    let usage = format!("*)\n    echo \"usage: $0 {}\" >&2\n    exit 2\n    ;;\nesac\n\n", names.join(" | "));
    text + &usage + "# One server that ends, ends all: a layout with a part missing is another layout.\nwait -n\n"
}
