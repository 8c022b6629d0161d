//! A plan in words, for a terminal.

use std::fmt::{self, Write as _};

use super::layout::{Layout, LayoutArm, LayoutServer};
use super::memory::Room;
use super::model::{Attention, Model, NotModelled, WeightsFrom};
use super::overhead::Range;
use super::warning::names;
use super::{Plan, Planned};
use crate::plan::host::topo::Link;

/// The whole plan as text.
#[must_use]
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let written = gpus(&mut out, plan)
        .and_then(|()| links(&mut out, plan))
        .and_then(|()| model(&mut out, plan))
        .and_then(|()| plan.layouts.iter().try_for_each(|planned| layout(&mut out, plan, planned)))
        .and_then(|()| closing(&mut out, plan));
    written.expect("writing to a String cannot fail");
    out
}

fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn gpus(out: &mut String, plan: &Plan) -> fmt::Result {
    writeln!(out, "GPUs")?;
    for gpu in &plan.gpus {
        let what = match &gpu.gpu {
            Some(gpu) if gpu.is_idle() => format!("{}, {} for programs, idle", gpu.name, gpu.total),
            Some(gpu) => format!("{}, {} for programs, {} in use", gpu.name, gpu.total, gpu.used),
            None => "kind and memory not told (--gpus, or --gpu-memory)".to_owned(),
        };
        let node = gpu.node.map_or_else(|| "NUMA node not told".to_owned(), |node| format!("NUMA node {node}"));
        let cpus = gpu.cpus.as_ref().map_or_else(String::new, |cpus| format!(", CPUs {cpus}"));
        writeln!(out, "  GPU{}  {what}; {node}{cpus}", gpu.index)?;
    }
    for warning in &plan.warnings {
        writeln!(out, "  ! {warning}")?;
    }
    if !plan.nodes.is_empty() {
        let nodes = plan.nodes.iter().map(|node| format!("{} (CPUs {})", node.id, node.cpus));
        writeln!(out, "  NUMA nodes: {}", nodes.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

/// Each kind of link with its pairs, nearest first.
fn links(out: &mut String, plan: &Plan) -> fmt::Result {
    if plan.links.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nLinks between them")?;
    let mut kinds: Vec<Link> = plan.links.iter().map(|pair| pair.link).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let pairs: Vec<_> = plan.links.iter().filter(|pair| pair.link == kind).collect();
        let which = if pairs.len() == plan.links.len() && pairs.len() > 1 {
            format!("all {} pairs", pairs.len())
        } else {
            pairs.iter().map(|pair| format!("{}-{}", pair.a, pair.b)).collect::<Vec<_>>().join(" ")
        };
        writeln!(out, "  {:<5} {which}: {}", kind.name(), kind.words())?;
    }
    Ok(())
}

fn model(out: &mut String, plan: &Plan) -> fmt::Result {
    let Some(model) = &plan.model else {
        return writeln!(
            out,
            "\nNo model was told (--model-config): the room for weights and KV cache is not reckoned."
        );
    };
    let load = &plan.load;
    let from = match model.weights_from {
        WeightsFrom::Files => "by its files",
        WeightsFrom::Estimate => "estimated from its shapes",
    };
    writeln!(out, "\nModel {}", plan.name)?;
    writeln!(out, "  weights {} ({}), {from}", model.weights, model.format)?;
    writeln!(out, "  {}", kv_words(model, load.kv_bits.unwrap_or(model.activation).0))?;
    if let Some(sliding) = model.sliding {
        writeln!(
            out,
            "  {} of {} layers hold the last {} tokens of a sequence alone: longer ones take less for each token",
            sliding.layers, model.layers, sliding.window
        )?;
    }
    for left_out in &model.not_modelled {
        writeln!(out, "  ! {}", left_out_words(*left_out))?;
    }
    writeln!(out, "  A server takes {} of each GPU (--gpu-memory-utilization).", load.utilization)?;
    match load.overhead {
        Some(overhead) => writeln!(out, "  It holds {overhead} beside weights and KV cache (--overhead).")?,
        None => writeln!(
            out,
            "  What it holds beside weights and KV cache is a range: it says how much when it starts, and --overhead takes that."
        )?,
    }
    if let (Some(context), None) = (plan.max_model_len, load.max_model_len) {
        let own = model.longest.map_or_else(String::new, |longest| format!(" of {longest}"));
        writeln!(
            out,
            "  --max-model-len {context} is added: the model's own length{own} is more than some server's KV cache holds, and \
             vLLM would not start."
        )?;
    }
    writeln!(
        out,
        "  Asked for: {} at once, {} tokens in, {} out; a sequence holds {} on average while it decodes.",
        counted(load.concurrency, "request"),
        load.input,
        load.output,
        load.mean_tokens()
    )
}

/// The formula of a token's KV cache with this model's figures in it.
fn kv_words(model: &Model, bits: u32) -> String {
    let bytes = f64::from(bits) / 8.0;
    let size = super::memory::per_token(model, super::model::Bits(bits), 1);
    match model.attention {
        Attention::Heads { kv_heads, head_dim } => format!(
            "KV cache {size} a token: 2 (key and value) x {} layers x {kv_heads} KV heads x {head_dim} x {bytes} bytes",
            model.layers
        ),
        Attention::Latent { rank, rope } => format!(
            "KV cache {size} a token: {} layers x ({rank} + {rope}) x {bytes} bytes (MLA), the same on each GPU of a TP group",
            model.layers
        ),
    }
}

fn left_out_words(what: NotModelled) -> &'static str {
    match what {
        NotModelled::SlidingWindow => {
            "which layers have a sliding window is not told: there is room for more sequences than is said here"
        }
        NotModelled::StateLayers => {
            "layers without a KV cache are counted as if they had one: there is more room than is said here"
        }
        NotModelled::OtherModalities => {
            "the parts for images or sound are not in the estimate: give the folder with its files"
        }
    }
}

fn layout(out: &mut String, plan: &Plan, planned: &Planned) -> fmt::Result {
    let layout = &planned.layout;
    writeln!(
        out,
        "\nLayout {}: {}",
        layout.name,
        layout.arms.iter().map(arm_words).collect::<Vec<_>>().join(" beside ")
    )?;
    for arm in &layout.arms {
        room(out, plan, layout, arm)?;
    }
    for warning in &layout.warnings {
        writeln!(out, "  ! {warning}")?;
    }
    for launch in &planned.launch {
        writeln!(out, "    {}", launch.line())?;
    }
    Ok(())
}

fn arm_words(arm: &LayoutArm) -> String {
    match (arm.tp, arm.servers.len()) {
        (1, 1) => "one server on one GPU".to_owned(),
        (1, count) => format!("{count} replicas, one GPU each"),
        (tp, 1) => format!("one server over {tp} GPUs"),
        (tp, count) => format!("{count} servers over {tp} GPUs each"),
    }
}

/// The room of an arm: of each of its servers where they are alike, of the smallest where not.
fn room(out: &mut String, plan: &Plan, layout: &Layout, arm: &LayoutArm) -> fmt::Result {
    let rooms: Vec<(&LayoutServer, &Room)> =
        arm.servers.iter().filter_map(|server| Some((server, server.room.as_ref()?))).collect();
    let Some((server, least)) = rooms.iter().min_by_key(|(_, room)| room.tokens) else { return Ok(()) };
    let head = if layout.arms.len() > 1 { format!("{}: ", arm.name) } else { String::new() };
    let alike = rooms.iter().all(|(_, room)| room.tokens == least.tokens);
    let who = if alike { "each GPU".to_owned() } else { format!("the least, {}", names(&server.gpus)) };
    writeln!(
        out,
        "  {head}{who}: {} weights, {} for steps, {} KV cache{}, {} a token",
        least.weights,
        range_words(least.overhead),
        range_words(least.kv),
        error_words(least.kv),
        least.per_token
    )?;
    let sum = |of: fn(&Room) -> u64| rooms.iter().map(|(_, room)| of(room)).sum::<u64>();
    let (total, fewest, most) = (sum(|room| room.tokens), sum(|room| room.tokens_least), sum(|room| room.tokens_most));
    let range = if fewest == most { String::new() } else { format!(" ({fewest} to {most})") };
    let sequences: u64 = rooms.iter().map(|(_, room)| room.sequences).sum();
    let cap: u64 = rooms.iter().map(|(_, room)| room.max_num_seqs).sum();
    let at_once = arm.at_once().unwrap_or_default();
    // Sessions are shared out by GPUs where two arms run side by side.
    let gpus: usize = layout.arms.iter().map(LayoutArm::gpus).sum();
    let concurrency = (plan.load.concurrency * arm.gpus() as u64).div_ceil(gpus.max(1) as u64);
    let waits = concurrency.saturating_sub(at_once);
    let verdict = match (waits, sequences < cap) {
        (0, _) => format!("all {concurrency} decode at once"),
        (waits, true) => format!("{at_once} of {concurrency} decode at once, {waits} wait for room"),
        (waits, false) => {
            format!("{at_once} of {concurrency} decode at once, {waits} wait: --max-num-seqs is {cap} in all")
        }
    };
    writeln!(out, "  {head}{total} tokens of KV cache in all{range}, {sequences} mean sequences: {verdict}")
}

fn range_words(range: Range) -> String {
    let (least, most) = (range.least.to_string(), range.most.to_string());
    if least == most { least } else { format!("{least} to {most}") }
}

/// The error of the middle of a range; nothing of a size that is known.
fn error_words(range: Range) -> String {
    match range.most.less(range.least).0 / 2 {
        0 => String::new(),
        half => format!(" (± {:.1} GiB)", half as f64 / 1_073_741_824.0),
    }
}

fn closing(out: &mut String, plan: &Plan) -> fmt::Result {
    if plan.layouts.is_empty() {
        return writeln!(out, "\nNo layout: no whole GPU is left.");
    }
    writeln!(
        out,
        "\n{} belongs to the environment of the server (the `vllm serve` process), not to Forebay's nor to the client's, which\n\
         use no GPU. A server that is started without it takes GPU0 first, whichever you meant, and the others stay idle.",
        plan.vendor.variable()
    )?;
    if plan.starting().next().is_none() {
        writeln!(out, "No layout would start as it is: see the lines with `!`.")?;
    }
    if let Some(advice) = &plan.advice {
        writeln!(out, "\nTry {} first", advice.first)?;
        advice.why.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        if !advice.changes.is_empty() {
            writeln!(out, "  What would change that:")?;
        }
        advice.changes.iter().try_for_each(|line| writeln!(out, "  - {line}"))?;
        writeln!(out)?;
    }
    writeln!(
        out,
        "These are estimates. Which layout is better for your traffic is to be measured: --out DIR writes what `forebay compare \
         DIR/experiment.toml` runs."
    )
}
