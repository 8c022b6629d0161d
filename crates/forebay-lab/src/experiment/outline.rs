//! What an experiment would do, in words: servers with their commands, and the order of the turns. Starts nothing.

use std::fmt::Write as _;

use super::journal;
use super::plan::{self, Start};
use super::spec::{Experiment, Route, ServerSpec};
use crate::rows::row_file::Offered;

/// The plan, and where its results go.
#[must_use]
pub fn outline(experiment: &Experiment) -> String {
    let plan = plan::plan(experiment);
    let mut out = String::new();
    // writing to a string cannot fail
    _ = writeln!(out, "{}: {}", experiment.name, counts(experiment, &plan));
    if let Some(scale) = experiment.time_scale {
        _ = writeln!(out, "simulated servers, {scale} times as fast as real ones");
    }
    for load in &experiment.loads {
        let eos = if load.ignore_eos { ", past the end token" } else { "" };
        let behind = load.prefixes.map_or_else(String::new, |prefixes| format!(" ({prefixes} before them)"));
        _ = writeln!(
            out,
            "load: {} prompts {}, {} tokens in{behind}, up to {} out{eos}; before it {} prompts of the same length, {} out",
            load.num_prompts,
            offered(load.offered),
            load.input_len,
            load.output_len,
            experiment.warm_up.num_prompts,
            experiment.warm_up.output_len.unwrap_or(load.output_len).min(load.output_len)
        );
    }
    out.push_str("\nservers\n");
    for server in &experiment.servers {
        out.push_str(&of_server(experiment, server));
    }
    out.push_str("\narms\n");
    for arm in &experiment.arms {
        let servers: Vec<&str> = arm.servers.iter().map(|index| experiment.servers[*index].name.as_str()).collect();
        let way = match arm.route {
            Route::Direct => "straight to".to_owned(),
            Route::Forebay(policy) => format!("through Forebay ({policy}) to"),
        };
        _ = writeln!(out, "  {}: {way} {}; {} GPUs", arm.name, servers.join(" and "), arm.gpus);
    }
    out.push_str("\norder\n");
    for (number, start) in plan.iter().enumerate() {
        out.push_str(&of_start(experiment, number + 1, start));
    }
    _ = writeln!(out, "\nrows go to {}", journal::rows_in(&experiment.out).display());
    out
}

fn counts(experiment: &Experiment, plan: &[Start]) -> String {
    let epochs: usize = plan.iter().map(|start| start.epochs.len()).sum();
    let each: Vec<String> = (0..experiment.arms.len())
        .map(|arm| {
            let own = plan.iter().flat_map(|start| &start.epochs).filter(|epoch| epoch.arm == arm).count();
            format!("{own} of {}", experiment.arms[arm].name)
        })
        .collect();
    format!("{} starts of servers, {epochs} turns ({})", plan.len(), each.join(", "))
}

fn of_server(experiment: &Experiment, server: &ServerSpec) -> String {
    let mut out = String::new();
    let env: String = server.env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    _ = writeln!(out, "  {}: {env}{}", server.name, server.command.join(" "));
    for more in &server.or_else {
        _ = writeln!(out, "      or with {}", more.join(" "));
    }
    let after: Vec<&str> = server.after.iter().map(|index| experiment.servers[*index].name.as_str()).collect();
    let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(" and ")) };
    let limit = server.start_timeout.as_secs_f64();
    _ = writeln!(out, "      ready when {}{} is 200, within {limit} s{after}", server.url, server.health);
    out
}

fn of_start(experiment: &Experiment, number: usize, start: &Start) -> String {
    let mut servers: Vec<usize> =
        start.epochs.iter().flat_map(|epoch| experiment.arms[epoch.arm].servers.iter().copied()).collect();
    servers.sort_unstable();
    servers.dedup();
    let servers: Vec<&str> = servers.iter().map(|index| experiment.servers[*index].name.as_str()).collect();
    let mut out = format!("  {number}. start {}; ", servers.join(", "));
    let mut block = None;
    for epoch in &start.epochs {
        let arm = &experiment.arms[epoch.arm].name;
        let rate = match experiment.loads.len() {
            1 => String::new(),
            _ => format!(" ({})", offered(experiment.loads[epoch.load].offered)),
        };
        let mark = match block.replace(epoch.block) {
            None => "",
            Some(last) if last == epoch.block => " ",
            Some(_) => " | ",
        };
        _ = write!(out, "{mark}{arm}{rate}");
    }
    out.push('\n');
    out
}

fn offered(offered: Offered) -> String {
    match offered {
        Offered::Unlimited => "all at once".to_owned(),
        Offered::Rate(rate) => format!("at {rate} a second"),
        Offered::Concurrency(limit) => format!("{limit} at a time"),
        Offered::Trace(speedup) => format!("{speedup} times as fast as a trace"),
        Offered::Traffic => "as real clients send".to_owned(),
    }
}
