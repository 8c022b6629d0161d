//! How AMD's GPUs are linked: the text of `rocm-smi --showtopo`. Pure. It names XGMI and PCIe, not what lies on the way of PCIe;
//! two GPUs over PCIe are taken to be a host bridge apart on one NUMA node, and the nodes' interconnect apart on two.

use super::numa::Set;
use super::topo::{GpuPlace, Link, Topology};
use crate::plan::mistake::{Fault, Mistake};

/// Returns whether a text is AMD's.
#[must_use]
pub fn is_amd(text: &str) -> bool {
    ["ROCm System Management Interface", "Link Type between two GPUs", "LINK TYPE TABLE", "NUMA BW TABLE"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// Reads the output of `rocm-smi --showtopo`.
///
/// # Errors
/// It has no table of link types, a row is missing or short, or a cell is unknown; with the line.
pub fn parse(text: &str) -> Result<Topology, Mistake> {
    let lines: Vec<&str> = text.lines().collect();
    if text.contains("LINK TYPE TABLE") {
        return Err(Fault::AmdSmi.whole());
    }
    let title =
        lines.iter().position(|line| line.contains("Link Type between two GPUs")).ok_or(Fault::NoLinkTypes.whole())?;
    let nodes = numa_nodes(&lines)?;
    // The head is the next line with words in it; lines count from 1, and the title's own place is `title`.
    let head = (title + 1..lines.len()).find(|&at| !lines[at].trim().is_empty()).ok_or(Fault::NoLinkTypes.whole())?;
    let columns = lines[head].split_whitespace().take_while(|word| word.starts_with("GPU")).count();
    if columns == 0 {
        return Err(Fault::NoLinkTypes.at(head + 1));
    }
    let mut links = Vec::new();
    for row in 0..columns {
        let (at, name) = (head + 1 + row, format!("GPU{row}"));
        let mut words = lines.get(at).map_or("", |line| *line).split_whitespace();
        if words.next() != Some(name.as_str()) {
            return Err(Fault::NoRow(name).at(at + 1));
        }
        let cells: Vec<&str> = words.collect();
        if cells.len() < columns {
            return Err(Fault::ShortRow { row: name, found: cells.len(), wanted: columns }.at(at + 1));
        }
        let same_node = |column: usize| match (nodes.get(row), nodes.get(column)) {
            (Some(Some(a)), Some(Some(b))) => a == b,
            _ => true,
        };
        let link = |(column, cell): (usize, &&str)| match *cell {
            _ if column == row => Ok(None),
            "XGMI" => Ok(Some(Link::Xgmi)),
            "PCIE" => Ok(Some(if same_node(column) { Link::Phb } else { Link::Sys })),
            other => Err(Fault::UnknownLinkType(other.to_owned()).at(at + 1)),
        };
        links.push(cells[..columns].iter().enumerate().map(link).collect::<Result<Vec<_>, _>>()?);
    }
    let place = |row| GpuPlace { cpus: None, nodes: nodes.get(row).copied().flatten().map(|node| Set::of([node])) };
    Ok(Topology { gpus: (0..columns).map(place).collect(), links, p2p: None, nics: 0 })
}

/// The NUMA node of each GPU, by lines such as `GPU[0] : (Topology) Numa Node: 1`; none where it is told as -1.
fn numa_nodes(lines: &[&str]) -> Result<Vec<Option<u32>>, Mistake> {
    let mut nodes = Vec::new();
    for (line, content) in (1..).zip(lines) {
        let Some((head, node)) = content.split_once("(Topology) Numa Node:") else { continue };
        let bad = || Fault::BadList(content.trim().to_owned()).at(line);
        let gpu: usize =
            head.trim().strip_prefix("GPU[").and_then(|rest| rest.split(']').next()?.parse().ok()).ok_or_else(bad)?;
        if gpu != nodes.len() {
            return Err(Fault::StrayRow(format!("GPU{gpu}")).at(line));
        }
        let node: i64 = node.trim().parse().map_err(|_| bad())?;
        nodes.push(u32::try_from(node).ok());
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "=== ROCm System Management Interface ===\n=== Link Type between two GPUs ===\n       GPU0  GPU1  GPU2\n\
        GPU0   0     XGMI  PCIE\nGPU1   XGMI  0     PCIE\nGPU2   PCIE  PCIE  0\n\n=== Numa Nodes ===\n\
        GPU[0] : (Topology) Numa Node: 0\nGPU[0] : (Topology) Numa Affinity: 0\nGPU[1] : (Topology) Numa Node: 0\n\
        GPU[2] : (Topology) Numa Node: 1\n";

    #[test]
    fn pcie_between_two_nodes_is_their_interconnect() {
        let topology = parse(TEXT).unwrap();
        assert_eq!(topology.links[0], [None, Some(Link::Xgmi), Some(Link::Sys)]);
        assert_eq!(topology.gpus[2].nodes, Some(Set::of([1])));
        let one_node = TEXT.replace("Numa Node: 1", "Numa Node: 0");
        assert_eq!(parse(&one_node).unwrap().links[2][0], Some(Link::Phb));
    }

    #[test]
    fn every_mistake_has_its_line() {
        let fault = |from: &str, to: &str| parse(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(fault("GPU1   XGMI  0     PCIE\n", ""), Fault::NoRow("GPU1".into()).at(5));
        assert_eq!(fault("PCIE  PCIE  0", "PCIE"), Fault::ShortRow { row: "GPU2".into(), found: 1, wanted: 3 }.at(6));
        assert_eq!(fault("0     XGMI", "0     ????"), Fault::UnknownLinkType("????".into()).at(4));
        assert_eq!(fault("GPU[2]", "GPU[7]"), Fault::StrayRow("GPU7".into()).at(12));
        assert_eq!(fault("Link Type", "Link Kind").fault, Fault::NoLinkTypes);
        assert_eq!(parse("LINK TYPE TABLE:\n").unwrap_err().fault, Fault::AmdSmi);
    }
}
