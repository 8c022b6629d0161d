//! How GPUs are divided and grouped.

use super::*;
use crate::plan::bytes::Bytes;
use crate::plan::host::Vendor;
use crate::plan::host::gpu::Gpu;
use crate::plan::host::topo;
use crate::plan::memory::ServingLoad;
use crate::plan::warning::PlanWarning;

const LOAD: ServingLoad = ServingLoad {
    utilization: 0.9,
    overhead: None,
    dtype: None,
    kv_cache_dtype: None,
    kv_bits: None,
    max_model_len: None,
    input: 100,
    output: 600,
    concurrency: 300,
};

/// A host of `kinds.len()` GPUs, each with its node; links by `link`.
fn host(kinds: &[(&str, u32)], link: impl Fn(usize, usize) -> &'static str) -> Host {
    let count = kinds.len();
    let head: Vec<String> = (0..count).map(|gpu| format!("GPU{gpu}")).collect();
    let mut text = format!("{} CPU Affinity NUMA Affinity\n", head.join(" "));
    for (a, (_, node)) in kinds.iter().enumerate() {
        let cells: Vec<&str> = (0..count).map(|b| if a == b { "X" } else { link(a, b) }).collect();
        text += &format!("GPU{a} {} N/A {node}\n", cells.join(" "));
    }
    let gpus = kinds.iter().enumerate().map(|(index, (name, _))| Gpu::of(index, *name, Bytes::mib(24_207))).collect();
    Host::of(Vendor::Nvidia, Some(topo::parse(&text).unwrap()), Some(gpus), Vec::new()).unwrap()
}

fn found(host: &Host) -> Vec<Layout> {
    layouts(host, Wanted { model: None, load: &LOAD, base_port: 8001 }).0
}

fn names(host: &Host) -> Vec<String> {
    found(host).into_iter().map(|layout| layout.name).collect()
}

#[test]
fn gpus_are_divided_by_powers_of_two_all_together_and_half_and_half() {
    let alike = |count: usize| host(&vec![("A", 0); count], |_, _| "PHB");
    assert_eq!(names(&alike(1)), ["tp1"]);
    assert_eq!(names(&alike(2)), ["tp1x2", "tp2"]);
    assert_eq!(names(&alike(3)), ["tp1x3", "tp2", "tp3", "tp2+tp1"]);
    assert_eq!(names(&alike(4)), ["tp1x4", "tp2x2", "tp4", "tp2+tp1x2"]);
    assert_eq!(names(&alike(8)), ["tp1x8", "tp2x4", "tp4x2", "tp8", "tp2x2+tp1x4", "tp4+tp1x4"]);
}

#[test]
fn groups_are_formed_of_what_is_nearest() {
    // 0 with 3 and 1 with 2
    let near = |a: usize, b: usize| if a + b == 3 { "NV4" } else { "SYS" };
    let host = host(&[("A", 0), ("A", 1), ("A", 1), ("A", 0)], near);
    let layout = found(&host).into_iter().find(|layout| layout.name == "tp2x2").unwrap();
    let groups: Vec<_> = layout.servers().map(|server| server.gpus.clone()).collect();
    assert_eq!(groups, [[0, 3], [1, 2]]);
    assert_eq!(layout.warnings, []);
    let bound: Vec<_> = layout.servers().map(|server| server.bind(&host)).collect();
    assert_eq!(bound, [Some(0), Some(1)]);
}

#[test]
fn a_group_is_of_one_kind_and_what_is_left_is_named_idle() {
    let host = host(&[("A", 0), ("B", 0), ("A", 0)], |_, _| "PHB");
    let layout = found(&host).into_iter().find(|layout| layout.name == "tp2").unwrap();
    assert_eq!(layout.arms[0].servers[0].gpus, [0, 2]);
    assert_eq!(layout.warnings, [PlanWarning::Idle { gpus: vec![1] }]);
    assert!(names(&host).iter().all(|name| name != "tp3"));
}

#[test]
fn no_two_servers_share_a_port() {
    let host = host(&[("A", 0); 8], |_, _| "NV18");
    let mut ports: Vec<u16> = found(&host).iter().flat_map(Layout::servers).map(|server| server.port).collect();
    let count = ports.len();
    ports.dedup();
    assert_eq!((ports.len(), ports[0], *ports.last().unwrap()), (count, 8001, 8000 + count as u16));
}

#[test]
fn where_ports_end_layouts_end() {
    let host = host(&[("A", 0), ("A", 0)], |_, _| "PHB");
    let (found, _) = layouts(&host, Wanted { model: None, load: &LOAD, base_port: u16::MAX - 1 });
    assert_eq!(found.len(), 1);
}
