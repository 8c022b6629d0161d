//! How GPUs are linked: the text of `nvidia-smi topo -m`, with that of `nvidia-smi topo -p2p r` behind it if it was recorded too.
//! Pure. The text is taken as it is: with the tool's underlining, with network cards among the columns, with tabs or, where
//! it went through a web page, with spaces.

use serde::{Serialize, Serializer};

use super::numa::Set;
use crate::plan::mistake::{Fault, Mistake};

/// The kind of link between two GPUs, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// AMD's own link.
    Xgmi,
    /// A number of bonded NVLinks.
    Nvlink(u32),
    /// One PCIe switch at most.
    Pix,
    /// Several PCIe switches, not the CPU.
    Pxb,
    /// A PCIe host bridge: the CPU's own.
    Phb,
    /// Two PCIe host bridges of one NUMA node.
    Node,
    /// The interconnect between NUMA nodes.
    Sys,
}

impl Link {
    /// Reads a cell; `None` where it is no link.
    #[must_use]
    pub fn parse(cell: &str) -> Option<Link> {
        Some(match cell {
            "PIX" | "PSB" => Link::Pix,
            "PXB" => Link::Pxb,
            "PHB" => Link::Phb,
            "NODE" => Link::Node,
            // as drivers before 2017 called it
            "SYS" | "SOC" => Link::Sys,
            "XGMI" => Link::Xgmi,
            other => Link::Nvlink(other.strip_prefix("NV")?.parse().ok().filter(|&links| links > 0)?),
        })
    }

    /// The tool's own name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Link::Xgmi => "XGMI".into(),
            Link::Nvlink(links) => format!("NV{links}"),
            Link::Pix => "PIX".into(),
            Link::Pxb => "PXB".into(),
            Link::Phb => "PHB".into(),
            Link::Node => "NODE".into(),
            Link::Sys => "SYS".into(),
        }
    }

    /// Returns what it means, in words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Link::Xgmi => "AMD's Infinity Fabric link, not PCIe".into(),
            Link::Nvlink(1) => "one NVLink, not PCIe".into(),
            Link::Nvlink(links) => format!("{links} bonded NVLinks, not PCIe"),
            Link::Pix => "one PCIe switch, without the CPU".into(),
            Link::Pxb => "several PCIe switches, without the CPU".into(),
            Link::Phb => "PCIe through the CPU's host bridge".into(),
            Link::Node => "PCIe through two host bridges of one NUMA node".into(),
            Link::Sys => "PCIe and the interconnect between NUMA nodes (QPI, UPI, Infinity Fabric)".into(),
        }
    }

    /// Returns whether it goes over no CPU: NVLink and its like, or PCIe switches.
    #[must_use]
    pub fn is_near(self) -> bool {
        self.distance() <= Link::Pxb.distance()
    }

    /// Returns the distance of two GPUs: less is nearer.
    #[must_use]
    pub fn distance(self) -> u32 {
        match self {
            Link::Xgmi | Link::Nvlink(_) => 0,
            Link::Pix => 1,
            Link::Pxb => 2,
            Link::Phb => 3,
            Link::Node => 4,
            Link::Sys => 5,
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.name())
    }
}

/// The finding on whether two GPUs read each other's memory, as `nvidia-smi topo -p2p r` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum P2p {
    /// They do.
    On,
    /// They do not, for the tool's reason.
    Off(Refusal),
}

/// The reason why two GPUs do not read each other's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// CNS.
    Chipset,
    /// GNS.
    Gpu,
    /// TNS.
    Topology,
    /// DR.
    Driver,
    /// NS or U.
    Unsaid,
}

impl P2p {
    fn parse(cell: &str) -> Option<P2p> {
        Some(match cell {
            "OK" => P2p::On,
            "CNS" => P2p::Off(Refusal::Chipset),
            "GNS" => P2p::Off(Refusal::Gpu),
            "TNS" => P2p::Off(Refusal::Topology),
            "DR" => P2p::Off(Refusal::Driver),
            "NS" | "U" => P2p::Off(Refusal::Unsaid),
            _ => return None,
        })
    }
}

impl Refusal {
    /// The tool's word and what it means.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Refusal::Chipset => "CNS, the chipset does not support it",
            Refusal::Gpu => "GNS, the GPU does not support it",
            Refusal::Topology => "TNS, the topology does not support it",
            Refusal::Driver => "DR, the driver has it off",
            Refusal::Unsaid => "not supported",
        }
    }
}

/// One GPU of the matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuPlace {
    /// The CPUs near it.
    pub cpus: Option<Set>,
    /// The NUMA nodes near it: one, or several where the tool does not know better.
    pub nodes: Option<Set>,
}

/// The links between the GPUs of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// GPU0, GPU1, …
    pub gpus: Vec<GpuPlace>,
    /// Row and column by GPU; `None` with itself.
    pub links: Vec<Vec<Option<Link>>>,
    /// The finding, pair by pair, on whether they read each other's memory, if it was recorded.
    pub p2p: Option<Vec<Vec<Option<P2p>>>>,
    /// Network cards among the columns.
    pub nics: usize,
}

/// A matrix as it is written: its GPU columns, and the cells of each GPU's row with the row's line.
struct Matrix<'a> {
    line: usize,
    columns: usize,
    others: usize,
    rows: Vec<Option<(usize, Vec<&'a str>)>>,
}

/// Reads the output of `nvidia-smi topo -m`, and of `nvidia-smi topo -p2p r` behind it.
///
/// # Errors
/// There is no matrix, a row is missing or short, or a cell is unknown; with the line.
pub fn parse(text: &str) -> Result<Topology, Mistake> {
    if text.trim().is_empty() {
        return Err(Fault::Empty.whole());
    }
    let text = without_escapes(text);
    let matrices = matrices(&text)?;
    let Some(first) = matrices.first() else { return Err(no_matrix(&text)) };
    // `topo -p2p` alone says nothing of links
    let is_p2p = |matrix: &Matrix<'_>| {
        let cells = matrix.rows.iter().flatten().flat_map(|(_, cells)| cells.iter().take(matrix.columns));
        cells.filter(|cell| **cell != "X").any(|cell| P2p::parse(cell).is_some())
    };
    if is_p2p(first) {
        return Err(Fault::NoMatrix.whole());
    }
    let links = cells(first, Link::parse, Fault::UnknownLink)?;
    let p2p = match matrices.iter().skip(1).find(|matrix| is_p2p(matrix)) {
        Some(matrix) => Some(cells(matrix, P2p::parse, Fault::UnknownStatus)?),
        None => None,
    };
    let rows = first.rows.iter().flatten();
    let gpus = rows.map(|(line, cells)| place(&cells[first.columns..], *line)).collect::<Result<Vec<_>, _>>()?;
    Ok(Topology { links, gpus, p2p: p2p.filter(|p2p| p2p.len() == first.columns), nics: first.others })
}

/// Finds why a text has no matrix.
fn no_matrix(text: &str) -> Mistake {
    let failed = text.lines().zip(1..).find(|(line, _)| {
        let line = line.to_ascii_lowercase();
        ["nvidia-smi has failed", "failed to", "command not found", "no devices were found"]
            .iter()
            .any(|sign| line.contains(sign))
    });
    match failed {
        Some((line, number)) => Fault::NvidiaSmiFailed(line.trim().to_owned()).at(number),
        None => Fault::NoMatrix.whole(),
    }
}

/// The text without the escape sequences by which the tool underlines the head.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if chars.next_if_eq(&'[').is_some() {
            while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
        }
    }
    out
}

fn gpu_number(word: &str) -> Option<usize> {
    word.strip_prefix("GPU").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// Every matrix of the text: a line of GPU columns, and the rows that follow it.
fn matrices(text: &str) -> Result<Vec<Matrix<'_>>, Mistake> {
    let mut found: Vec<Matrix<'_>> = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let words: Vec<&str> = content.split_whitespace().collect();
        let Some(first) = words.first().copied().and_then(gpu_number) else { continue };
        let columns = words.iter().enumerate().take_while(|(at, word)| gpu_number(word) == Some(*at)).count();
        // A row of a one-GPU host is `GPU0 X …`; a head goes on with GPU1, a card, or `CPU Affinity`.
        let is_head = columns > 0 && words.get(columns).is_none_or(|word| *word != "X" && Link::parse(word).is_none());
        if is_head {
            let others = words[columns..].iter().take_while(|word| **word != "CPU").count();
            found.push(Matrix { line, columns, others, rows: vec![None; columns] });
        } else if let Some(matrix) = found.last_mut() {
            let row = words[0].to_owned();
            let cells = words[1..].to_vec();
            match matrix.rows.get_mut(first) {
                Some(place @ None) => *place = Some((line, cells)),
                _ => return Err(Fault::StrayRow(row).at(line)),
            }
        }
    }
    Ok(found)
}

/// The GPU columns of a matrix, read by `read`.
fn cells<T>(
    matrix: &Matrix<'_>,
    read: impl Fn(&str) -> Option<T>,
    unknown: impl Fn(String) -> Fault,
) -> Result<Vec<Vec<Option<T>>>, Mistake> {
    let mut out = Vec::new();
    for (index, row) in matrix.rows.iter().enumerate() {
        let name = || format!("GPU{index}");
        let Some((line, cells)) = row else { return Err(Fault::NoRow(name()).at(matrix.line)) };
        if cells.len() < matrix.columns {
            let short = Fault::ShortRow { row: name(), found: cells.len(), wanted: matrix.columns };
            return Err(short.at(*line));
        }
        let read = |(column, cell): (usize, &&str)| {
            if column == index {
                Ok(None)
            } else {
                read(cell).map(Some).ok_or_else(|| unknown((*cell).to_owned()).at(*line))
            }
        };
        out.push(cells[..matrix.columns].iter().enumerate().map(read).collect::<Result<_, _>>()?);
    }
    Ok(out)
}

/// Reads what stands behind the links of a row: CPUs, NUMA nodes, the GPU's own node. With many network cards drivers run
/// two cells together (`NODENODE`), so cells are skipped while they are made of the names of links.
fn place(rest: &[&str], line: usize) -> Result<GpuPlace, Mistake> {
    let is_link = |cell: &&&str| {
        let mut rest = **cell;
        while let Some(name) = ["SYS", "NODE", "PHB", "PXB", "PIX", "X"].iter().find(|name| rest.starts_with(**name)) {
            rest = &rest[name.len()..];
        }
        rest.is_empty() || Link::parse(rest).is_some()
    };
    let mut rest = rest.iter().skip_while(is_link).map(|cell| match *cell {
        "N/A" => Ok(None),
        list => Set::parse(list).map(Some).map_err(|fault| fault.at(line)),
    });
    let cpus = rest.next().transpose()?.flatten();
    let nodes = rest.next().transpose()?.flatten();
    Ok(GpuPlace { cpus, nodes })
}

#[cfg(test)]
mod tests;
