//! A host's GPUs, put together from what its tools say: links and places from the matrix, names and memory from the XML, CPUs
//! of each NUMA node. Pure.

pub mod gpu;
pub mod numa;
pub mod rocm;
pub mod topo;

use serde::Serialize;

use self::gpu::Gpu;
use self::numa::{Node, Set};
use self::topo::{Link, P2p, Topology};
use super::mistake::{Fault, Mistake};

/// The maker of GPUs, which decides the variable by which a server sees some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// `CUDA_VISIBLE_DEVICES`.
    Nvidia,
    /// `HIP_VISIBLE_DEVICES`.
    Amd,
}

impl Vendor {
    /// The environment variable of a server that names the GPUs which it may use.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Vendor::Nvidia => "CUDA_VISIBLE_DEVICES",
            Vendor::Amd => "HIP_VISIBLE_DEVICES",
        }
    }
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The maker of the GPUs.
    pub vendor: Vendor,
    /// GPU0, GPU1, …
    pub gpus: Vec<HostGpu>,
    /// Row and column by GPU; `None` with itself, or where it was not told.
    pub links: Vec<Vec<Option<Link>>>,
    /// The finding, pair by pair, on whether they read each other's memory, if that was recorded.
    pub p2p: Option<Vec<Vec<Option<P2p>>>>,
    /// The NUMA nodes, if they were listed.
    pub nodes: Vec<Node>,
    /// Network cards in the matrix.
    pub nics: usize,
}

/// A GPU and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostGpu {
    /// Its number.
    pub index: usize,
    /// The GPU as the XML describes it, if the XML was given.
    pub gpu: Option<Gpu>,
    /// The CPUs near it.
    pub cpus: Option<Set>,
    /// The NUMA node near it, if there is one.
    pub node: Option<u32>,
}

impl Host {
    /// Puts a host together. At least one of `topology` and `gpus` is there.
    ///
    /// # Errors
    /// They name different numbers of GPUs, or there are several GPUs and nothing says how they are linked.
    pub fn of(
        vendor: Vendor,
        topology: Option<Topology>,
        gpus: Option<Vec<Gpu>>,
        nodes: Vec<Node>,
    ) -> Result<Host, Mistake> {
        let count = topology.as_ref().map(|topology| topology.gpus.len());
        let listed = gpus.as_ref().map(Vec::len);
        match (count, listed) {
            (Some(topo), Some(listed)) if topo != listed => {
                return Err(Fault::CountsDiffer { topo, listed }.whole());
            }
            (None, Some(2..)) => return Err(Fault::NoMatrix.whole()),
            (None, None) => return Err(Fault::NoGpu.whole()),
            _ => {}
        }
        let count = count.or(listed).unwrap_or_default();
        let mut gpus = gpus.map_or_else(|| vec![None; count], |gpus| gpus.into_iter().map(Some).collect()).into_iter();
        let (places, links, p2p, nics) = match topology {
            Some(topology) => (topology.gpus, topology.links, topology.p2p, topology.nics),
            None => (Vec::new(), vec![vec![None; count]; count], None, 0),
        };
        let mut places = places.into_iter();
        let gpu = |index| {
            let place = places.next();
            let node = place.as_ref().and_then(|place| node_of(place.nodes.as_ref(), place.cpus.as_ref(), &nodes));
            HostGpu { index, gpu: gpus.next().flatten(), cpus: place.and_then(|place| place.cpus), node }
        };
        Ok(Host { vendor, gpus: (0..count).map(gpu).collect(), links, p2p, nodes, nics })
    }

    /// Returns whether it has several NUMA nodes, so that binding to one means something.
    #[must_use]
    pub fn has_several_nodes(&self) -> bool {
        let near = Set::of(self.gpus.iter().filter_map(|gpu| gpu.node));
        self.nodes.len() > 1 || near.numbers().len() > 1
    }

    /// Returns whether its GPUs are of several kinds.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        self.gpus.windows(2).any(|pair| !self.same_kind(pair[0].index, pair[1].index))
    }

    /// Returns whether two GPUs may form one group: the same board with the same memory, as far as is known.
    #[must_use]
    pub fn same_kind(&self, a: usize, b: usize) -> bool {
        let kind = |index: usize| self.gpus[index].gpu.as_ref().map(|gpu| (&gpu.name, gpu.total));
        kind(a) == kind(b)
    }

    /// The link between two GPUs.
    #[must_use]
    pub fn link(&self, a: usize, b: usize) -> Option<Link> {
        self.links[a][b]
    }

    /// The nodes near some GPUs; `None` if one's is not known.
    #[must_use]
    pub fn nodes_of(&self, gpus: &[usize]) -> Option<Set> {
        gpus.iter().map(|&gpu| self.gpus[gpu].node).collect::<Option<Vec<_>>>().map(Set::of)
    }
}

/// The one node near a GPU: what the matrix says, or the one that has its CPUs.
fn node_of(near: Option<&Set>, cpus: Option<&Set>, nodes: &[Node]) -> Option<u32> {
    if let Some([node]) = near.map(Set::numbers) {
        return Some(*node);
    }
    let cpus = cpus.filter(|cpus| !cpus.is_empty())?;
    let has_all = |node: &&Node| cpus.numbers().iter().all(|cpu| node.cpus.numbers().contains(cpu));
    nodes.iter().find(has_all).map(|node| node.id)
}

#[cfg(test)]
mod tests {
    use self::topo;
    use super::*;
    use crate::plan::bytes::Bytes;

    fn host(topo: &str, nodes: Vec<Node>) -> Host {
        Host::of(Vendor::Nvidia, Some(topo::parse(topo).unwrap()), None, nodes).unwrap()
    }

    #[test]
    fn a_node_that_the_matrix_does_not_tell_is_found_by_its_cpus() {
        let nodes = [("0-3", 0), ("4-7", 1)].map(|(cpus, id)| Node { id, cpus: Set::parse(cpus).unwrap() });
        let host = host("GPU0 GPU1 CPU Affinity\nGPU0 X SYS 0-3\nGPU1 SYS X 4-7\n", nodes.to_vec());
        assert_eq!([host.gpus[0].node, host.gpus[1].node], [Some(0), Some(1)]);
        assert!(host.has_several_nodes());
    }

    #[test]
    fn two_texts_of_different_hosts_are_refused() {
        let topology = topo::parse("GPU0 CPU Affinity\nGPU0 X 0-3\n").unwrap();
        let gpus = (0..2).map(|index| Gpu::of(index, "T", Bytes::mib(1))).collect();
        let mistake = Host::of(Vendor::Nvidia, Some(topology), Some(gpus), Vec::new()).unwrap_err();
        assert_eq!(mistake.fault, Fault::CountsDiffer { topo: 1, listed: 2 });
    }

    #[test]
    fn several_gpus_need_their_links() {
        let gpus: Vec<Gpu> = (0..2).map(|index| Gpu::of(index, "T", Bytes::mib(1))).collect();
        let of = |gpus: &[Gpu]| Host::of(Vendor::Nvidia, None, Some(gpus.to_vec()), Vec::new());
        assert_eq!(of(&gpus).unwrap_err().fault, Fault::NoMatrix);
        assert_eq!(of(&gpus[..1]).unwrap().gpus.len(), 1);
    }
}
