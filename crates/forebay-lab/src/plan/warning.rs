//! What speaks against a layout, or is to be known of a host, each with its figures. Pure.

use std::fmt;

use serde::Serialize;

use super::host::Host;
use super::layout::{Arm, Layout, Server, Wanted};
use super::memory::{Bytes, Refused};
use super::model::{Attention, Model};
use super::numa::Set;
use super::topo::{Link, P2p, Refusal};

/// Something to know.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Warning {
    /// A server would not start.
    Refused {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// Why.
        why: Refused,
    },
    /// Its KV cache does not hold one sequence of the longest context.
    TooLong {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// The context.
        context: u64,
        /// What it holds.
        tokens: u64,
    },
    /// Others hold memory that it would take.
    Taken {
        /// The GPU.
        gpu: usize,
        /// What is free.
        free: Bytes,
        /// What the server would take.
        wanted: Bytes,
        /// The largest utilization that fits, if any does.
        utilization: Option<f64>,
    },
    /// GPUs of one group are linked over the CPUs' interconnect.
    Sys {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// All-reduces in a step, and what each moves for a token, if the model is known.
        traffic: Option<Traffic>,
    },
    /// GPUs of one group are near different NUMA nodes.
    AcrossNodes {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// The nodes.
        nodes: Set,
    },
    /// GPUs of one group do not read each other's memory.
    P2pOff {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// Why.
        why: Refusal,
    },
    /// A group with more GPUs than KV heads holds copies of them.
    Copies {
        /// The TP size.
        tp: usize,
        /// How many times each KV head is held.
        times: u64,
    },
    /// GPUs that a layout leaves alone.
    Idle {
        /// Which.
        gpus: Vec<usize>,
    },
    /// A GPU that others use.
    Busy {
        /// Which.
        gpu: usize,
        /// What is in use.
        used: Bytes,
        /// By whom.
        by: Vec<String>,
    },
    /// A GPU that is cut into instances.
    Mig {
        /// Which.
        gpu: usize,
        /// The memory of each instance.
        instances: Vec<Bytes>,
    },
    /// GPUs of several kinds.
    Mixed {
        /// Their names.
        kinds: Vec<String>,
    },
    /// A slot with fewer lanes than the board.
    NarrowSlot {
        /// Which GPU.
        gpu: usize,
        /// Lanes in use.
        current: u32,
        /// Lanes of the board.
        board: u32,
    },
}

/// What a group's GPUs tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// All-reduces in a step: two for each layer.
    pub all_reduces: u64,
    /// Bytes of each, for each token of the step.
    pub token: Bytes,
}

impl Warning {
    /// Whether a server does not start because of it.
    #[must_use]
    pub fn prevents(&self) -> bool {
        matches!(self, Warning::Refused { .. } | Warning::TooLong { .. } | Warning::Taken { .. })
    }
}

impl Warning {
    /// What is to be known of a host, in words.
    fn of_host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Busy { gpu, used, by } => {
                write!(f, "GPU{gpu} is in use: {used}")?;
                if by.is_empty() {
                    write!(f, ", by whom nvidia-smi does not tell")
                } else {
                    write!(f, ", by {}", by.join(", "))
                }
            }
            Warning::Mig { gpu, instances } => {
                let sizes: Vec<String> = instances.iter().map(Bytes::to_string).collect();
                let sizes = if sizes.is_empty() { String::new() } else { format!(" ({})", sizes.join(", ")) };
                write!(
                    f,
                    "GPU{gpu} is cut into instances{sizes} by MIG and left out: instances form no TP group. `nvidia-smi -i {gpu} \
                     -mig 0` makes it whole; or start one TP=1 server for each, with CUDA_VISIBLE_DEVICES=MIG-… as \
                     `nvidia-smi -L` names them"
                )
            }
            Warning::Mixed { kinds } => write!(
                f,
                "the GPUs are of several kinds ({}): a TP group is formed within one kind, and replicas differ in speed and room",
                kinds.join(", ")
            ),
            Warning::NarrowSlot { gpu, current, board } => write!(
                f,
                "GPU{gpu} runs on {current} of {board} PCIe lanes: loading and all-reduces over PCIe are slower by as much"
            ),
            _ => Ok(()),
        }
    }
}

/// `GPU0`, `GPU0 and GPU2`, `GPU0 to GPU7`.
#[must_use]
pub fn names(gpus: &[usize]) -> String {
    match gpus {
        [] => String::new(),
        [one] => format!("GPU{one}"),
        [first, .., last] if gpus.len() > 2 && last - first + 1 == gpus.len() => format!("GPU{first} to GPU{last}"),
        [rest @ .., last] => {
            let rest: Vec<String> = rest.iter().map(|gpu| format!("GPU{gpu}")).collect();
            format!("{} and GPU{last}", rest.join(", "))
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Refused { gpus, why } => write!(f, "{}: {why}", names(gpus)),
            Warning::TooLong { gpus, context, tokens } => write!(
                f,
                "{}: vLLM will not start: its KV cache holds {tokens} tokens, fewer than one sequence of {context}; set \
                 --max-model-len to what you need",
                names(gpus)
            ),
            Warning::Taken { gpu, free, wanted, utilization } => {
                write!(f, "GPU{gpu}: vLLM will not start: it would take {wanted}, and {free} is free; ")?;
                match utilization {
                    Some(most) => write!(f, "end what uses it, or set --gpu-memory-utilization to {most} at most"),
                    None => write!(f, "end what uses it"),
                }
            }
            Warning::Sys { gpus, traffic } => {
                let gpus = names(gpus);
                write!(f, "{gpus} are SYS apart: every all-reduce goes over the interconnect between the CPUs")?;
                match traffic {
                    Some(Traffic { all_reduces, token }) => {
                        write!(f, " ({all_reduces} a step, {token} each for every token in the step)")
                    }
                    None => Ok(()),
                }
            }
            Warning::AcrossNodes { gpus, nodes } => write!(
                f,
                "{} are near different NUMA nodes ({nodes}), so one numactl cannot bind the server well; vLLM 0.32 has \
                 --numa-bind, which binds each of its workers",
                names(gpus)
            ),
            Warning::P2pOff { gpus, why } => write!(
                f,
                "{} do not read each other's memory ({}): all-reduces are copied through the host's memory",
                names(gpus),
                why.words()
            ),
            Warning::Copies { tp, times } => write!(
                f,
                "a TP size of {tp} is more than the model has KV heads: each is held {times} times, and the KV cache grows \
                 less than the GPUs"
            ),
            Warning::Idle { gpus } => write!(f, "{} would be idle", names(gpus)),
            Warning::Busy { .. } | Warning::Mig { .. } | Warning::Mixed { .. } | Warning::NarrowSlot { .. } => {
                self.of_host(f)
            }
        }
    }
}

/// What is to be known of a host, whatever the layout.
#[must_use]
pub fn of_host(host: &Host) -> Vec<Warning> {
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
        found.push(Warning::Mixed { kinds });
    }
    for gpu in gpus {
        if let Some(mig) = &gpu.mig {
            found.push(Warning::Mig { gpu: gpu.index, instances: mig.instances.clone() });
        }
        if !gpu.is_idle() {
            let by = gpu.processes.iter().map(|process| match process.used {
                Some(used) => format!("{} (pid {}, {used})", process.name, process.pid),
                None => format!("{} (pid {})", process.name, process.pid),
            });
            found.push(Warning::Busy { gpu: gpu.index, used: gpu.used, by: by.collect() });
        }
        if let Some(lanes) = gpu.narrow_slot {
            found.push(Warning::NarrowSlot { gpu: gpu.index, current: lanes.current, board: lanes.board });
        }
    }
    found
}

/// What speaks against a layout.
#[must_use]
pub fn of_layout(host: &Host, wanted: Wanted<'_>, layout: &Layout, context: Option<u64>) -> Vec<Warning> {
    let mut found: Vec<Warning> = Vec::new();
    for server in layout.servers() {
        of_start(&mut found, host, wanted, server, context);
        of_links(&mut found, host, wanted.model, server);
    }
    let refused = |arm: &Arm| arm.servers.iter().all(|server| server.refused.is_some());
    let copies = |arm: &Arm, model: &Model| match model.attention {
        _ if refused(arm) => None,
        Attention::Heads { kv_heads, .. } if arm.tp as u64 > kv_heads => {
            Some(Warning::Copies { tp: arm.tp, times: arm.tp as u64 / kv_heads })
        }
        Attention::Latent { .. } if arm.tp > 1 => Some(Warning::Copies { tp: arm.tp, times: arm.tp as u64 }),
        _ => None,
    };
    found.extend(layout.arms.iter().filter_map(|arm| wanted.model.and_then(|model| copies(arm, model))));
    if !layout.idle.is_empty() {
        found.push(Warning::Idle { gpus: layout.idle.clone() });
    }
    found
}

/// Why a server would not start.
fn of_start(found: &mut Vec<Warning>, host: &Host, wanted: Wanted<'_>, server: &Server, context: Option<u64>) {
    let gpus = server.gpus.clone();
    if let Some(why) = &server.refused {
        found.push(Warning::Refused { gpus, why: why.clone() });
        return;
    }
    let context = context.or_else(|| wanted.model?.longest);
    if let (Some(room), Some(context)) = (&server.room, context)
        && room.tokens < context
    {
        found.push(Warning::TooLong { gpus, context, tokens: room.tokens });
    }
    for &index in &server.gpus {
        let Some(gpu) = &host.gpus[index].gpu else { continue };
        let budget = Bytes((gpu.total.0 as f64 * wanted.load.utilization) as u64);
        let free = gpu.free();
        if free < budget {
            let most = (free.0 as f64 / gpu.total.0.max(1) as f64 * 100.0).floor() / 100.0;
            let utilization = (most >= 0.05).then_some(most);
            found.push(Warning::Taken { gpu: index, free, wanted: budget, utilization });
        }
    }
}

/// What a group's links cost it.
fn of_links(found: &mut Vec<Warning>, host: &Host, model: Option<&Model>, server: &Server) {
    if server.gpus.len() < 2 || server.refused.is_some() {
        return;
    }
    let gpus = || server.gpus.clone();
    if server.farthest == Some(Link::Sys) {
        let traffic = model.map(|model| Traffic {
            all_reduces: 2 * model.layers,
            token: Bytes(model.hidden * u64::from(model.activation.0) / 8),
        });
        found.push(Warning::Sys { gpus: gpus(), traffic });
    }
    if let Some(nodes) = server.nodes.as_ref().filter(|nodes| nodes.numbers().len() > 1) {
        found.push(Warning::AcrossNodes { gpus: gpus(), nodes: nodes.clone() });
    }
    let off = host.p2p.as_ref().and_then(|p2p| {
        let pairs = server.gpus.iter().flat_map(|&a| server.gpus.iter().map(move |&b| (a, b)));
        pairs.filter_map(|(a, b)| p2p[a][b]).find_map(|p2p| match p2p {
            P2p::Off(why) => Some(why),
            P2p::On => None,
        })
    });
    if let Some(why) = off {
        found.push(Warning::P2pOff { gpus: gpus(), why });
    }
}
