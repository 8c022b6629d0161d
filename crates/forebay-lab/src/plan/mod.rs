//! What a host with several GPUs can do for one model: how its GPUs are linked, the ways to use them, the room of each way, what
//! speaks against it, and the lines that start it. Everything here is a function of texts; `cli/plan.rs` reads and writes.
//! It plans and does not promise: which way is better for some traffic is measured (`forebay compare`).

mod advice;
pub mod bytes;
mod checks;
mod division;
pub mod emit;
pub mod host;
pub mod launch;
pub mod layout;
pub mod memory;
pub mod mistake;
pub mod model;
pub mod overhead;
pub mod report;
pub mod warning;

use serde::Serialize;

pub use advice::Advice;
use host::topo::Link;
use host::{Host, HostGpu, Vendor};
use launch::LaunchLine;
use layout::{Layout, Wanted};
use memory::ServingLoad;
use model::Model;
use warning::PlanWarning;

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The maker of the GPUs.
    pub vendor: Vendor,
    /// The GPUs.
    pub gpus: Vec<HostGpu>,
    /// The pairs of them, each with its link.
    pub links: Vec<GpuPair>,
    /// The NUMA nodes, if they were listed.
    pub nodes: Vec<host::numa::Node>,
    /// Network cards in the matrix.
    pub nics: usize,
    /// The model's name in the launch lines.
    pub name: String,
    /// The model that is served, if that was told.
    pub model: Option<Model>,
    /// The way in which it is served, and the load.
    pub load: ServingLoad,
    /// The `--max-model-len` of every server, where one is needed.
    pub max_model_len: Option<u64>,
    /// The warnings about the host.
    pub warnings: Vec<PlanWarning>,
    /// The ways to use it.
    pub layouts: Vec<Planned>,
    /// The layout to try first, and what would change that; none without a model.
    pub advice: Option<Advice>,
}

/// Two GPUs and what lies between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GpuPair {
    /// The one with the smaller number.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// The link between them.
    pub link: Link,
}

/// A layout and the lines that start it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    /// The layout.
    #[serde(flatten)]
    pub layout: Layout,
    /// True if all its servers would start, as far as is known.
    pub starts: bool,
    /// The line that starts each server, in their order.
    pub launch: Vec<LaunchLine>,
}

impl Plan {
    /// Plans for `host` and the model called `name`, which is `None` where only the host is of interest.
    #[must_use]
    pub fn of(host: &Host, name: String, model: Option<Model>, load: ServingLoad, base_port: u16) -> Plan {
        let wanted = Wanted { model: model.as_ref(), load: &load, base_port };
        let (layouts, max_model_len) = division::layouts(host, wanted);
        let plan = |layout: Layout| {
            let lines = layout.servers().map(|server| launch::launch(host, server, &name, &load, max_model_len));
            Planned { starts: layout.starts(), launch: lines.collect(), layout }
        };
        let layouts: Vec<Planned> = layouts.into_iter().map(plan).collect();
        let pairs = (0..host.gpus.len()).flat_map(|a| (a + 1..host.gpus.len()).map(move |b| (a, b)));
        Plan {
            vendor: host.vendor,
            gpus: host.gpus.clone(),
            links: pairs.filter_map(|(a, b)| host.link(a, b).map(|link| GpuPair { a, b, link })).collect(),
            nodes: host.nodes.clone(),
            nics: host.nics,
            warnings: checks::of_host(host),
            advice: advice::advice(host, &layouts, wanted),
            layouts,
            max_model_len,
            load,
            name,
            model,
        }
    }

    /// The layouts that would start.
    pub fn starting(&self) -> impl Iterator<Item = &Planned> {
        self.layouts.iter().filter(|layout| layout.starts)
    }
}
