//! The warnings of a plan, each with its figures and in words. `checks.rs` finds them. Pure.

use std::fmt;

use serde::Serialize;

use super::bytes::Bytes;
use super::memory::Refused;
use crate::plan::host::numa::Set;
use crate::plan::host::topo::Refusal;

/// Something to know.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PlanWarning {
    /// A server would not start.
    Refused {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// The reason.
        why: Refused,
    },
    /// Its KV cache does not hold one sequence of the longest context.
    TooLong {
        /// On which GPUs.
        gpus: Vec<usize>,
        /// The context.
        context: u64,
        /// The tokens that it holds.
        tokens: u64,
    },
    /// Others hold memory that it would take.
    Taken {
        /// The GPU.
        gpu: usize,
        /// The memory that is free.
        free: Bytes,
        /// The memory that the server would take.
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
        /// The reason.
        why: Refusal,
    },
    /// A group with more GPUs than KV heads holds copies of them.
    Copies {
        /// The TP size.
        tp: usize,
        /// The number of times that each KV head is held.
        times: u64,
    },
    /// GPUs that a layout leaves alone.
    Idle {
        /// The GPUs.
        gpus: Vec<usize>,
    },
    /// A GPU that others use.
    Busy {
        /// The GPU.
        gpu: usize,
        /// The memory in use.
        used: Bytes,
        /// By whom.
        by: Vec<String>,
    },
    /// A GPU that is cut into instances.
    Mig {
        /// The GPU.
        gpu: usize,
        /// The memory of each instance.
        instances: Vec<Bytes>,
    },
    /// GPUs of several kinds.
    Mixed {
        /// Their names.
        kinds: Vec<String>,
    },
    /// Nobody told whether GPUs read each other's memory.
    P2pNotTold,
    /// GPUs of which only the memory is known, and whose kind would change vLLM's defaults.
    KindNotTold {
        /// The `--max-num-seqs` that the plan takes.
        max_num_seqs: u64,
    },
    /// A slot with fewer lanes than the board.
    NarrowSlot {
        /// The GPU.
        gpu: usize,
        /// Lanes in use.
        current: u32,
        /// Lanes of the board.
        board: u32,
    },
}

/// The traffic between a group's GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// All-reduces in a step: two for each layer.
    pub all_reduces: u64,
    /// Bytes of each, for each token of the step.
    pub token: Bytes,
}

impl PlanWarning {
    /// Returns whether a server does not start because of it.
    #[must_use]
    pub fn prevents(&self) -> bool {
        matches!(self, PlanWarning::Refused { .. } | PlanWarning::TooLong { .. } | PlanWarning::Taken { .. })
    }
}

impl PlanWarning {
    /// Writes what is to be known of a host, in words.
    fn of_host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanWarning::Busy { gpu, used, by } => {
                write!(f, "GPU{gpu} is in use: {used}")?;
                if by.is_empty() {
                    write!(f, ", by whom nvidia-smi does not tell")
                } else {
                    write!(f, ", by {}", by.join(", "))
                }
            }
            PlanWarning::Mig { gpu, instances } => {
                let sizes: Vec<String> = instances.iter().map(Bytes::to_string).collect();
                let sizes = if sizes.is_empty() { String::new() } else { format!(" ({})", sizes.join(", ")) };
                write!(
                    f,
                    "GPU{gpu} is cut into instances{sizes} by MIG and left out: instances form no TP group. `nvidia-smi -i {gpu} \
                     -mig 0` makes it whole; or start one TP=1 server for each, with CUDA_VISIBLE_DEVICES=MIG-… as \
                     `nvidia-smi -L` names them"
                )
            }
            PlanWarning::Mixed { kinds } => write!(
                f,
                "the GPUs are of several kinds ({}): a TP group is formed within one kind, and replicas differ in speed and room",
                kinds.join(", ")
            ),
            PlanWarning::NarrowSlot { gpu, current, board } => write!(
                f,
                "GPU{gpu} runs on {current} of {board} PCIe lanes: loading and all-reduces over PCIe are slower by as much"
            ),
            PlanWarning::P2pNotTold => write!(
                f,
                "whether the GPUs read each other's memory (P2P) was not told: without it all-reduces are copied through the \
                 host's memory. `nvidia-smi topo -p2p r >> topo.txt` tells it"
            ),
            PlanWarning::KindNotTold { max_num_seqs } => write!(
                f,
                "the GPUs' kind was not told: vLLM runs 256 sequences at once on an A100 and 1024 on others of this size. This plan \
                 takes {max_num_seqs}; --gpus tells the kind"
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

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanWarning::Refused { gpus, why } => write!(f, "{}: {why}", names(gpus)),
            PlanWarning::TooLong { gpus, context, tokens } => write!(
                f,
                "{}: vLLM will not start: its KV cache holds {tokens} tokens, fewer than one sequence of {context}; set \
                 --max-model-len to what you need",
                names(gpus)
            ),
            PlanWarning::Taken { gpu, free, wanted, utilization } => {
                write!(f, "GPU{gpu}: vLLM will not start: it would take {wanted}, and {free} is free; ")?;
                match utilization {
                    Some(most) => write!(f, "end what uses it, or set --gpu-memory-utilization to {most} at most"),
                    None => write!(f, "end what uses it"),
                }
            }
            PlanWarning::Sys { gpus, traffic } => {
                let gpus = names(gpus);
                write!(f, "{gpus} are SYS apart: every all-reduce goes over the interconnect between the CPUs")?;
                match traffic {
                    Some(Traffic { all_reduces, token }) => {
                        write!(f, " ({all_reduces} a step, {token} each for every token in the step)")
                    }
                    None => Ok(()),
                }
            }
            PlanWarning::AcrossNodes { gpus, nodes } => write!(
                f,
                "{} are near different NUMA nodes ({nodes}), so one numactl cannot bind the server well; vLLM 0.32 has \
                 --numa-bind, which binds each of its workers",
                names(gpus)
            ),
            PlanWarning::P2pOff { gpus, why } => write!(
                f,
                "{} do not read each other's memory ({}): all-reduces are copied through the host's memory",
                names(gpus),
                why.words()
            ),
            PlanWarning::Copies { tp, times } => write!(
                f,
                "a TP size of {tp} is more than the model has KV heads: each is held {times} times, and the KV cache grows \
                 less than the GPUs"
            ),
            PlanWarning::Idle { gpus } => write!(f, "{} would be idle", names(gpus)),
            PlanWarning::Busy { .. }
            | PlanWarning::Mig { .. }
            | PlanWarning::Mixed { .. }
            | PlanWarning::P2pNotTold
            | PlanWarning::KindNotTold { .. }
            | PlanWarning::NarrowSlot { .. } => self.of_host(f),
        }
    }
}
