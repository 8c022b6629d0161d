//! What each GPU is and who uses it: the XML of `nvidia-smi -q -x`. Pure. Only what a plan needs is read; a field that a driver
//! leaves out, or answers with N/A, is absent and not zero.

use roxmltree::{Document, Node, ParsingOptions};
use serde::Serialize;

use crate::plan::bytes::Bytes;
use crate::plan::mistake::{Fault, Mistake};

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its number, as `nvidia-smi` counts.
    pub index: usize,
    /// Such as `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// The total that a CUDA program sees: the board's memory without what the driver reserves.
    pub total: Bytes,
    /// The memory in use now.
    pub used: Bytes,
    /// The processes that use it; empty also where the driver does not tell (in a container).
    pub processes: Vec<GpuProcess>,
    /// It is cut into instances (MIG).
    pub mig: Option<Mig>,
    /// Lanes of the slot and of the board, where they differ.
    pub narrow_slot: Option<Lanes>,
}

/// A process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuProcess {
    /// Its id.
    pub pid: u64,
    /// Its program.
    pub name: String,
    /// The memory that it holds, if the driver tells.
    pub used: Option<Bytes>,
    /// It computes; else it draws, as a desktop does.
    pub computes: bool,
}

/// A GPU that is cut into instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mig {
    /// The memory of each instance.
    pub instances: Vec<Bytes>,
}

/// PCIe lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lanes {
    /// In use.
    pub current: u32,
    /// The lanes that the board could use.
    pub board: u32,
}

/// Less use than this is a driver's own, or a desktop's.
const IDLE_BELOW: Bytes = Bytes::mib(600);

/// The name of a GPU whose kind is not known.
const UNNAMED: &str = "GPU";

impl Gpu {
    /// Nobody computes on it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.processes.iter().any(|process| process.computes) && self.used < IDLE_BELOW
    }

    /// Returns the memory that is left now.
    #[must_use]
    pub fn free(&self) -> Bytes {
        self.total.less(self.used)
    }

    /// A GPU of which only the memory is known.
    #[must_use]
    pub fn unnamed(index: usize, total: Bytes) -> Gpu {
        Gpu::of(index, UNNAMED, total)
    }

    /// Returns whether its kind is known.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.name != UNNAMED
    }

    /// A GPU of a kind and with a memory that nobody uses.
    #[must_use]
    pub fn of(index: usize, name: impl Into<String>, total: Bytes) -> Gpu {
        let (used, processes) = (Bytes::default(), Vec::new());
        Gpu { index, name: name.into(), total, used, processes, mig: None, narrow_slot: None }
    }
}

/// Reads the output of `nvidia-smi -q -x`.
///
/// # Errors
/// It is no such XML, lists no GPU, or lacks a GPU's name or memory; with the line.
pub fn parse(text: &str) -> Result<Vec<Gpu>, Mistake> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| {
        let line = error.pos().row as usize;
        let failed =
            text.lines().next().filter(|line| !line.trim_start().starts_with('<') && line.contains("NVIDIA-SMI"));
        match failed {
            Some(said) => Fault::NvidiaSmiFailed(said.trim().to_owned()).at(1),
            None => Fault::BadXml(error.to_string()).at(line),
        }
    })?;
    let root = document.root_element();
    if root.tag_name().name() != "nvidia_smi_log" {
        return Err(Fault::OtherXml(root.tag_name().name().to_owned()).at(line_of(&root)));
    }
    let listed = root.children().filter(|node| node.has_tag_name("gpu")).enumerate();
    let gpus = listed.map(|(index, node)| gpu(index, &node)).collect::<Result<Vec<_>, _>>()?;
    if gpus.is_empty() { Err(Fault::NoGpu.whole()) } else { Ok(gpus) }
}

fn line_of(node: &Node<'_, '_>) -> usize {
    node.document().text_pos_at(node.range().start).row as usize
}

fn gpu(index: usize, node: &Node<'_, '_>) -> Result<Gpu, Mistake> {
    let missing = |what| move || Fault::NoField { index, what }.at(line_of(node));
    let name = text(node, &["product_name"]).ok_or_else(missing("product_name"))?;
    let memory = |field| text(node, &["fb_memory_usage", field]).and_then(mebibytes);
    let board = memory("total").ok_or_else(missing("fb_memory_usage total"))?;
    // Older drivers have no `reserved` and count it as used.
    let total = board.less(memory("reserved").unwrap_or_default());
    let used = memory("used").ok_or_else(missing("fb_memory_usage used"))?;
    let is_mig = text(node, &["mig_mode", "current_mig"]) == Some("Enabled");
    let lanes =
        |field| text(node, &["pci", "pci_gpu_link_info", "link_widths", field])?.strip_suffix('x')?.parse().ok();
    let narrow_slot = match (lanes("current_link_width"), lanes("max_link_width")) {
        (Some(current), Some(board)) if current < board => Some(Lanes { current, board }),
        _ => None,
    };
    Ok(Gpu {
        index,
        name: name.to_owned(),
        total,
        used,
        processes: processes(node),
        mig: is_mig.then(|| Mig { instances: instances(node) }),
        narrow_slot,
    })
}

/// The text at the end of a path of elements, if it says anything.
fn text<'a>(node: &Node<'a, '_>, path: &[&str]) -> Option<&'a str> {
    let mut at = *node;
    for name in path {
        at = at.children().find(|child| child.has_tag_name(*name))?;
    }
    at.text().map(str::trim).filter(|text| !text.is_empty() && *text != "N/A")
}

/// Reads `24564 MiB`.
fn mebibytes(text: &str) -> Option<Bytes> {
    text.strip_suffix("MiB")?.trim().parse().ok().filter(|&count| count < 1 << 40).map(Bytes::mib)
}

fn under<'a, 'i: 'a>(
    node: &Node<'a, 'i>,
    list: &'static str,
    item: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    let list = node.children().find(move |child| child.has_tag_name(list));
    list.into_iter().flat_map(|list| list.children()).filter(move |child| child.has_tag_name(item))
}

fn processes(node: &Node<'_, '_>) -> Vec<GpuProcess> {
    let read = |process: Node<'_, '_>| {
        let name = text(&process, &["process_name"]).unwrap_or("unknown").to_owned();
        let used = text(&process, &["used_memory"]).and_then(mebibytes);
        let computes = text(&process, &["type"]).is_none_or(|kind| kind.contains('C'));
        Some(GpuProcess { pid: text(&process, &["pid"])?.parse().ok()?, name, used, computes })
    };
    under(node, "processes", "process_info").filter_map(read).collect()
}

fn instances(node: &Node<'_, '_>) -> Vec<Bytes> {
    let total = |device: Node<'_, '_>| text(&device, &["fb_memory_usage", "total"]).and_then(mebibytes);
    under(node, "mig_devices", "mig_device").filter_map(total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(inner: &str) -> String {
        format!(
            "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v12.dtd\">\n<nvidia_smi_log>\n<gpu id=\"x\">\n\
            <product_name>T</product_name>{inner}</gpu></nvidia_smi_log>"
        )
    }

    const MEMORY: &str =
        "<fb_memory_usage><total>24564 MiB</total><reserved>357 MiB</reserved><used>1 MiB</used></fb_memory_usage>";

    #[test]
    fn what_the_driver_reserves_is_not_for_programs() {
        let gpu = &parse(&one(MEMORY)).unwrap()[0];
        assert_eq!((gpu.total, gpu.free(), gpu.is_idle()), (Bytes::mib(24_207), Bytes::mib(24_206), true));
    }

    #[test]
    fn a_process_makes_a_gpu_busy_also_where_its_memory_is_not_told() {
        let process = "<processes><process_info><pid>7</pid><process_name>p</process_name><used_memory>N/A</used_memory>\
            </process_info></processes>";
        let gpu = &parse(&one(&format!("{MEMORY}{process}"))).unwrap()[0];
        assert_eq!(gpu.processes, [GpuProcess { pid: 7, name: "p".into(), used: None, computes: true }]);
        assert!(!gpu.is_idle());
    }

    #[test]
    fn a_desktop_leaves_a_gpu_idle() {
        let process = "<processes><process_info><pid>7</pid><type>G</type><process_name>Xorg</process_name></process_info></processes>";
        assert!(parse(&one(&format!("{MEMORY}{process}"))).unwrap()[0].is_idle());
    }

    #[test]
    fn a_slot_with_fewer_lanes_than_the_board_is_told() {
        let widths = |current: &str| {
            format!(
                "{MEMORY}<pci><pci_gpu_link_info><link_widths><max_link_width>16x</max_link_width>\
                <current_link_width>{current}</current_link_width></link_widths></pci_gpu_link_info></pci>"
            )
        };
        let narrow = |current| parse(&one(&widths(current))).unwrap()[0].narrow_slot;
        assert_eq!(narrow("4x"), Some(Lanes { current: 4, board: 16 }));
        assert_eq!([narrow("16x"), narrow("N/A")], [None, None]);
    }

    #[test]
    fn every_mistake_has_its_line() {
        let no_memory = parse(&one("<fb_memory_usage><total>N/A</total></fb_memory_usage>")).unwrap_err();
        assert_eq!(no_memory, Fault::NoField { index: 0, what: "fb_memory_usage total" }.at(4));
        assert_eq!(parse("<a>\n<b/>\n</c>").unwrap_err().line, Some(3));
        assert_eq!(parse("<a/>").unwrap_err().fault, Fault::OtherXml("a".into()));
        assert_eq!(parse("<nvidia_smi_log/>").unwrap_err().fault, Fault::NoGpu);
        let failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.";
        assert_eq!(parse(failed).unwrap_err(), Fault::NvidiaSmiFailed(failed.into()).at(1));
    }
}
