//! Divides a host's GPUs among servers: replicas of one GPU each, groups of tensor parallelism, and halves of both side by side.
//! Pure.

use super::checks;
use super::host::Host;
use super::host::topo::Link;
use super::layout::{Layout, LayoutArm, LayoutServer, Wanted};
use super::memory;

/// The layouts of a host, and the `--max-model-len` that all their servers get, if they need one.
#[must_use]
pub(super) fn layouts(host: &Host, wanted: Wanted<'_>) -> (Vec<Layout>, Option<u64>) {
    // An instance of a GPU joins no group, and a group no instance.
    let whole = |gpu: &&super::host::HostGpu| gpu.gpu.as_ref().is_none_or(|gpu| gpu.mig.is_none());
    let usable: Vec<usize> = host.gpus.iter().filter(whole).map(|gpu| gpu.index).collect();
    let mut found: Vec<Layout> = Vec::new();
    for parts in partitions(usable.len()) {
        let servers: usize = found.iter().map(|layout| layout.servers().count()).sum();
        let layout = lay_out(host, wanted, &usable, &parts, servers);
        if let Some(layout) = layout.filter(|layout| found.iter().all(|other| other.name != layout.name)) {
            found.push(layout);
        }
    }
    let context = context(&found, wanted);
    for layout in &mut found {
        layout.warnings = checks::of_layout(host, wanted, layout, context);
    }
    (found, context)
}

/// A TP size, and how many GPUs go to servers of it.
type Part = (usize, usize);

/// Lists the divisions of GPUs: all to one TP size, for 1, 2, 4, … and all of them; then half to one size above 1, half to TP=1.
fn partitions(count: usize) -> Vec<Vec<Part>> {
    let mut sizes: Vec<usize> = (0..usize::BITS).map(|bit| 1 << bit).take_while(|&size| size <= count).collect();
    if count > 0 && !sizes.contains(&count) {
        sizes.push(count);
    }
    let uniform = sizes.iter().map(|&size| vec![(size, count)]);
    let half = |size: usize| ((count / 2) / size * size).max(size);
    let mixed = sizes.iter().filter(|&&size| size > 1 && size < count && size <= (count / 2).max(2));
    uniform.chain(mixed.map(|&size| vec![(size, half(size)), (1, count - half(size))])).collect()
}

/// One layout, if there are GPUs of one kind for it; `before` servers of other layouts have the first ports.
fn lay_out(host: &Host, wanted: Wanted<'_>, usable: &[usize], parts: &[Part], before: usize) -> Option<Layout> {
    let mut left = usable.to_vec();
    let mut arms = Vec::new();
    let mut ports = (wanted.base_port..=u16::MAX).skip(before);
    for &(tp, gpus) in parts {
        let mut servers = Vec::new();
        for group in groups(host, &mut left, tp, gpus / tp) {
            servers.push(server(host, wanted, group, ports.next()?));
        }
        if servers.is_empty() {
            return None;
        }
        let name = if servers.len() == 1 { format!("tp{tp}") } else { format!("tp{tp}x{}", servers.len()) };
        arms.push(LayoutArm { name, tp, servers });
    }
    let name = arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>().join("+");
    Some(Layout { name, arms, idle: left, warnings: Vec::new() })
}

/// Takes up to `count` groups of `tp` GPUs of one kind from `left`, each from its first GPU on by what is nearest.
fn groups(host: &Host, left: &mut Vec<usize>, tp: usize, count: usize) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut firsts = left.clone().into_iter();
    while found.len() < count {
        let Some(first) = firsts.next() else { break };
        if !left.contains(&first) {
            continue;
        }
        let mut group = vec![first];
        while group.len() < tp {
            let others = left.iter().copied().filter(|gpu| !group.contains(gpu) && host.same_kind(first, *gpu));
            let Some(next) = others.min_by_key(|&gpu| farness(host, &group, gpu)) else { break };
            group.push(next);
        }
        if group.len() == tp {
            left.retain(|gpu| !group.contains(gpu));
            group.sort_unstable();
            found.push(group);
        }
    }
    found
}

/// Returns how far a GPU is from a group: the farthest link, then whether it is on another node, then its number.
fn farness(host: &Host, group: &[usize], gpu: usize) -> (u32, bool, usize) {
    let far = group.iter().map(|&other| host.link(gpu, other).map_or(u32::MAX, Link::distance)).max();
    let elsewhere = group.iter().any(|&other| host.gpus[other].node != host.gpus[gpu].node);
    (far.unwrap_or_default(), elsewhere, gpu)
}

fn server(host: &Host, wanted: Wanted<'_>, gpus: Vec<usize>, port: u16) -> LayoutServer {
    let pairs = gpus.iter().flat_map(|&a| gpus.iter().map(move |&b| (a, b))).filter(|(a, b)| a < b);
    let farthest = pairs.filter_map(|(a, b)| host.link(a, b)).max_by_key(|link| link.distance());
    let known: Option<Vec<_>> = gpus.iter().map(|&gpu| host.gpus[gpu].gpu.as_ref()).collect();
    let room = wanted.model.zip(known).map(|(model, gpus)| memory::room(model, wanted.load, &gpus));
    let (room, refused) = match room {
        Some(Ok(room)) => (Some(room), None),
        Some(Err(refused)) => (None, Some(refused)),
        None => (None, None),
    };
    LayoutServer { nodes: host.nodes_of(&gpus), gpus, port, farthest, room, refused }
}

/// The `--max-model-len` for every server: the one that was asked for; else, where the model's own length is more than some
/// server's KV cache holds (with which vLLM refuses to start), the largest power of two that they all hold. One for all, so that what is
/// compared is alike.
fn context(layouts: &[Layout], wanted: Wanted<'_>) -> Option<u64> {
    if wanted.load.max_model_len.is_some() {
        return wanted.load.max_model_len;
    }
    let longest = wanted.model?.longest?;
    let needed = wanted.load.input + wanted.load.output;
    let rooms = layouts.iter().flat_map(Layout::servers).filter_map(|server| server.room.as_ref());
    let least = rooms.map(|room| room.longest).filter(|&tokens| tokens >= needed).min()?;
    // The room is a reckoning, and a server that finds less of it than it was told does not start.
    let power = 1 << least.ilog2();
    (longest > least).then_some(if power >= needed { power } else { needed })
}

#[cfg(test)]
mod tests;
