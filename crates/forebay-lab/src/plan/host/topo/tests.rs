//! Matrices of links, whole and broken.

use super::*;

fn fault(text: &str) -> Mistake {
    parse(text).unwrap_err()
}

#[test]
fn a_matrix_is_read_with_its_underlining_and_its_tabs() {
    let text = "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\nGPU0\t X \tSYS\t0-15,32-47\t0\t\tN/A\n\
        GPU1\tSYS\t X \t16-31,48-63\t1\t\tN/A\n\nLegend:\n\n  X    = Self\n";
    let topology = parse(text).unwrap();
    assert_eq!(topology.links, [[None, Some(Link::Sys)], [Some(Link::Sys), None]]);
    assert_eq!(topology.gpus[1].nodes, Some(Set::of([1])));
    assert_eq!(topology.gpus[0].cpus.as_ref().map(Set::to_string), Some("0-15,32-47".into()));
    assert_eq!((topology.p2p, topology.nics), (None, 0));
}

#[test]
fn network_cards_are_counted_and_passed_over_also_where_two_cells_run_together() {
    let text = "GPU0 GPU1 mlx5_0 mlx5_1 CPU Affinity NUMA Affinity\nGPU0 X NV4 PIX NODE 0-7 0\nGPU1 NV4 X NODENODE 8-15 1\n\
        mlx5_0 PIX NODE X PIX\nmlx5_1 NODE NODE PIX X\n";
    let topology = parse(text).unwrap();
    assert_eq!((topology.nics, topology.links[0][1]), (2, Some(Link::Nvlink(4))));
    assert_eq!(topology.gpus[1], GpuPlace { cpus: Some(Set::parse("8-15").unwrap()), nodes: Some(Set::of([1])) });
}

#[test]
fn a_host_with_one_gpu_has_no_links() {
    let topology = parse("GPU0 CPU Affinity NUMA Affinity GPU NUMA ID\nGPU0 X 0-31 0-1 N/A\n").unwrap();
    assert_eq!(topology.links, [[None]]);
    assert_eq!(topology.gpus[0].nodes, Some(Set::of([0, 1])));
}

#[test]
fn what_the_tool_does_not_know_is_absent() {
    let topology = parse("GPU0 GPU1 CPU Affinity NUMA Affinity\nGPU0 X PHB N/A N/A\nGPU1 PHB X\n").unwrap();
    assert_eq!(topology.gpus, [GpuPlace { cpus: None, nodes: None }, GpuPlace { cpus: None, nodes: None }]);
}

#[test]
fn the_p2p_matrix_behind_it_is_read_too() {
    let text =
        "GPU0 GPU1 CPU Affinity\nGPU0 X PHB 0-3\nGPU1 PHB X 0-3\n \x1b[4mGPU0\tGPU1\x1b[0m\n GPU0 X CNS\n GPU1 OK X\n";
    let p2p = parse(text).unwrap().p2p.unwrap();
    assert_eq!(p2p, [[None, Some(P2p::Off(Refusal::Chipset))], [Some(P2p::On), None]]);
}

#[test]
fn every_mistake_has_its_line() {
    let head = "GPU0 GPU1 CPU Affinity\n";
    assert_eq!(fault(&format!("{head}GPU0 X 0-3\nGPU1 PHB X 0-3\n")), Fault::UnknownLink("0-3".into()).at(2));
    assert_eq!(fault(&format!("{head}GPU0 X PHB 0-3\n")), Fault::NoRow("GPU1".into()).at(1));
    let short = Fault::ShortRow { row: "GPU1".into(), found: 1, wanted: 2 };
    assert_eq!(fault(&format!("{head}GPU0 X PHB\nGPU1 PHB\n")), short.at(3));
    assert_eq!(fault(&format!("{head}GPU0 X PHB\nGPU0 X PHB\n")), Fault::StrayRow("GPU0".into()).at(3));
    assert_eq!(fault(&format!("{head}GPU0 X PHB 0-x\nGPU1 PHB X\n")), Fault::BadList("0-x".into()).at(2));
    assert_eq!(fault(&format!("{head}GPU0 X NV0\nGPU1 NV0 X\n")), Fault::UnknownLink("NV0".into()).at(2));
}

#[test]
fn a_text_of_something_else_is_named() {
    assert_eq!(fault(" \n"), Fault::Empty.whole());
    assert_eq!(fault("hello\n"), Fault::NoMatrix.whole());
    assert_eq!(fault("GPU0 GPU1\nGPU0 X OK\nGPU1 OK X\n"), Fault::NoMatrix.whole());
    let said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.";
    assert_eq!(fault(&format!("$ nvidia-smi topo -m\n{said}\n")), Fault::NvidiaSmiFailed(said.into()).at(2));
}
