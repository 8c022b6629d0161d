//! A way to use a host's GPUs: its arms and their servers, the room of each and what speaks against it. Pure.

use serde::Serialize;

use super::host::Host;
use super::memory::{Refused, Room, ServingLoad};
use super::model::Model;
use super::warning::PlanWarning;
use crate::plan::host::numa::Set;
use crate::plan::host::topo::Link;

/// One vLLM server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayoutServer {
    /// Its GPUs: as many as its TP size.
    pub gpus: Vec<usize>,
    /// The port on which it listens.
    pub port: u16,
    /// The NUMA nodes near its GPUs, if known.
    pub nodes: Option<Set>,
    /// The farthest link between two of its GPUs.
    pub farthest: Option<Link>,
    /// Its room; `None` where model or memory are not known.
    pub room: Option<Room>,
    /// The reason why it would not start.
    pub refused: Option<Refused>,
}

impl LayoutServer {
    /// The node to bind it to: where all its GPUs are, on a host with several.
    #[must_use]
    pub fn bind(&self, host: &Host) -> Option<u32> {
        match self.nodes.as_ref()?.numbers() {
            [node] if host.has_several_nodes() => Some(*node),
            _ => None,
        }
    }
}

/// Servers that are alike, one arm of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayoutArm {
    /// Such as `tp1x2`: a TP size of 1, two times.
    pub name: String,
    /// Its TP size.
    pub tp: usize,
    /// Its servers.
    pub servers: Vec<LayoutServer>,
}

impl LayoutArm {
    /// Returns the number of its GPUs.
    #[must_use]
    pub fn gpus(&self) -> usize {
        self.tp * self.servers.len()
    }

    /// Sequences of the mean length that decode at once, over its servers.
    #[must_use]
    pub fn at_once(&self) -> Option<u64> {
        self.servers.iter().map(|server| server.room.as_ref().map(Room::at_once)).sum()
    }
}

/// One way to use the GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layout {
    /// Its arms' names with `+` between them.
    pub name: String,
    /// One, or two that run side by side.
    pub arms: Vec<LayoutArm>,
    /// GPUs that it leaves alone.
    pub idle: Vec<usize>,
    /// The warnings that speak against it.
    pub warnings: Vec<PlanWarning>,
}

impl Layout {
    /// Every server.
    pub fn servers(&self) -> impl Iterator<Item = &LayoutServer> {
        self.arms.iter().flat_map(|arm| &arm.servers)
    }

    /// Returns whether all its servers would start, as far as is known.
    #[must_use]
    pub fn starts(&self) -> bool {
        !self.warnings.iter().any(PlanWarning::prevents)
    }
}

/// The model and the load that the layouts are for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The model that is served, if known.
    pub model: Option<&'a Model>,
    /// The way in which it is served, and the load.
    pub load: &'a ServingLoad,
    /// The first server's port; those of the others follow, so that no two servers of any layouts share one.
    pub base_port: u16,
}
