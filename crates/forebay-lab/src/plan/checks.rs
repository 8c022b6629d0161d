//! Checks a host and its layouts, and gives the warnings that they deserve. Pure.

use super::bytes::Bytes;
use super::host::gpu::Gpu;
use super::host::topo::{Link, P2p};
use super::host::{Host, Vendor};
use super::layout::{Layout, LayoutArm, LayoutServer, Wanted};
use super::model::{Attention, Model};
use super::overhead::step_limits;
use super::warning::{PlanWarning, Traffic};

/// Finds what is to be known of a host, whatever the layout.
#[must_use]
pub(super) fn of_host(host: &Host) -> Vec<PlanWarning> {
    let mut found = Vec::new();
    let gpus: Vec<_> = host.gpus.iter().filter_map(|gpu| gpu.gpu.as_ref()).collect();
    if host.is_mixed() {
        let mut kinds: Vec<String> = Vec::new();
        for gpu in &gpus {
            let kind = format!("{}, {}", gpu.name, gpu.total);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        found.push(PlanWarning::Mixed { kinds });
    }
    if host.vendor == Vendor::Nvidia && host.gpus.len() > 1 && host.p2p.is_none() {
        found.push(PlanWarning::P2pNotTold);
    }
    let maybe_a100 = |gpu: &&Gpu| !gpu.is_named() && (70..90).contains(&(gpu.total.0 >> 30));
    if let Some(gpu) = gpus.iter().find(|gpu| maybe_a100(gpu)) {
        found.push(PlanWarning::KindNotTold { max_num_seqs: step_limits(gpu).max_num_seqs });
    }
    for gpu in gpus {
        if let Some(mig) = &gpu.mig {
            found.push(PlanWarning::Mig { gpu: gpu.index, instances: mig.instances.clone() });
        }
        if !gpu.is_idle() {
            let by = gpu.processes.iter().map(|process| match process.used {
                Some(used) => format!("{} (pid {}, {used})", process.name, process.pid),
                None => format!("{} (pid {})", process.name, process.pid),
            });
            found.push(PlanWarning::Busy { gpu: gpu.index, used: gpu.used, by: by.collect() });
        }
        if let Some(lanes) = gpu.narrow_slot {
            found.push(PlanWarning::NarrowSlot { gpu: gpu.index, current: lanes.current, board: lanes.board });
        }
    }
    found
}

/// Finds what speaks against a layout.
#[must_use]
pub(super) fn of_layout(host: &Host, wanted: Wanted<'_>, layout: &Layout, context: Option<u64>) -> Vec<PlanWarning> {
    let mut found: Vec<PlanWarning> = Vec::new();
    for server in layout.servers() {
        of_start(&mut found, host, wanted, server, context);
        of_links(&mut found, host, wanted.model, server);
    }
    let refused = |arm: &LayoutArm| arm.servers.iter().all(|server| server.refused.is_some());
    let copies = |arm: &LayoutArm, model: &Model| match model.attention {
        _ if refused(arm) => None,
        Attention::Heads { kv_heads, .. } if arm.tp as u64 > kv_heads => {
            Some(PlanWarning::Copies { tp: arm.tp, times: arm.tp as u64 / kv_heads })
        }
        Attention::Latent { .. } if arm.tp > 1 => Some(PlanWarning::Copies { tp: arm.tp, times: arm.tp as u64 }),
        _ => None,
    };
    found.extend(layout.arms.iter().filter_map(|arm| wanted.model.and_then(|model| copies(arm, model))));
    if !layout.idle.is_empty() {
        found.push(PlanWarning::Idle { gpus: layout.idle.clone() });
    }
    found
}

/// Finds why a server would not start.
fn of_start(
    found: &mut Vec<PlanWarning>,
    host: &Host,
    wanted: Wanted<'_>,
    server: &LayoutServer,
    context: Option<u64>,
) {
    let gpus = server.gpus.clone();
    if let Some(why) = &server.refused {
        found.push(PlanWarning::Refused { gpus, why: why.clone() });
        return;
    }
    let context = context.or_else(|| wanted.model?.longest);
    if let (Some(room), Some(context)) = (&server.room, context)
        && room.longest < context
    {
        found.push(PlanWarning::TooLong { gpus, context, tokens: room.longest });
    }
    for &index in &server.gpus {
        let Some(gpu) = &host.gpus[index].gpu else { continue };
        let budget = Bytes((gpu.total.0 as f64 * wanted.load.utilization) as u64);
        let free = gpu.free();
        if free < budget {
            let most = (free.0 as f64 / gpu.total.0.max(1) as f64 * 100.0).floor() / 100.0;
            let utilization = (most >= 0.05).then_some(most);
            found.push(PlanWarning::Taken { gpu: index, free, wanted: budget, utilization });
        }
    }
}

/// Finds what a group's links cost it.
fn of_links(found: &mut Vec<PlanWarning>, host: &Host, model: Option<&Model>, server: &LayoutServer) {
    if server.gpus.len() < 2 || server.refused.is_some() {
        return;
    }
    let gpus = || server.gpus.clone();
    if server.farthest == Some(Link::Sys) {
        let traffic = model.map(|model| Traffic {
            all_reduces: 2 * model.layers,
            token: Bytes(model.hidden * u64::from(model.activation.0) / 8),
        });
        found.push(PlanWarning::Sys { gpus: gpus(), traffic });
    }
    if let Some(nodes) = server.nodes.as_ref().filter(|nodes| nodes.numbers().len() > 1) {
        found.push(PlanWarning::AcrossNodes { gpus: gpus(), nodes: nodes.clone() });
    }
    let off = host.p2p.as_ref().and_then(|p2p| {
        let pairs = server.gpus.iter().flat_map(|&a| server.gpus.iter().map(move |&b| (a, b)));
        pairs.filter_map(|(a, b)| p2p[a][b]).find_map(|p2p| match p2p {
            P2p::Off(why) => Some(why),
            P2p::On => None,
        })
    });
    if let Some(why) = off {
        found.push(PlanWarning::P2pOff { gpus: gpus(), why });
    }
}
