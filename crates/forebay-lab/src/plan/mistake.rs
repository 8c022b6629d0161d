//! What can be wrong with what `forebay plan` reads, each with its line where it has one, and what to do about it. Knows no
//! file names: who read the text adds them.

/// Something wrong in one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1, where one is to blame.
    pub line: Option<usize>,
    /// The fault there.
    pub fault: Fault,
}

/// A fault in an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is nothing in the text.
    #[error("the text is empty")]
    Empty,
    /// No line names GPU columns.
    #[error("no matrix of GPUs is here: no line has columns named GPU0, GPU1, …")]
    NoMatrix,
    /// Output of `nvidia-smi` that says it failed.
    #[error("this is an error of nvidia-smi, not its matrix: {0}")]
    NvidiaSmiFailed(String),
    /// A row has fewer cells than the head has GPUs.
    #[error("the row of {row} has {found} of {wanted} links")]
    ShortRow {
        /// Its name.
        row: String,
        /// Cells that are links.
        found: usize,
        /// GPUs in the head.
        wanted: usize,
    },
    /// A GPU of the head has no row.
    #[error("{0} is a column, but has no row")]
    NoRow(String),
    /// A row for a GPU that is not in the head, or a second one.
    #[error("the row of {0} has no column of its own")]
    StrayRow(String),
    /// A cell that is no link.
    #[error("`{0}` is not a link between GPUs")]
    UnknownLink(String),
    /// A cell that is no link of AMD's.
    #[error("`{0}` is not a link type between AMD GPUs")]
    UnknownLinkType(String),
    /// AMD's text without the table that is read.
    #[error("AMD's text has no table `Link Type between two GPUs`")]
    NoLinkTypes,
    /// The other tool of AMD's.
    #[error("this is the output of amd-smi, which is not read")]
    AmdSmi,
    /// A cell that is no P2P status.
    #[error("`{0}` is not a P2P status")]
    UnknownStatus(String),
    /// A list of CPUs or nodes that does not read as one.
    #[error("`{0}` is not a list such as 0-15,32-47")]
    BadList(String),
    /// Not XML, or not well-formed.
    #[error("this is not the XML of nvidia-smi -q -x: {0}")]
    BadXml(String),
    /// XML of something else.
    #[error("the XML is of <{0}>, not of <nvidia_smi_log>")]
    OtherXml(String),
    /// No GPU in it.
    #[error("no GPU is listed")]
    NoGpu,
    /// A GPU without something that is needed.
    #[error("GPU{index} has no readable {what}")]
    NoField {
        /// The GPU.
        index: usize,
        /// The field that is missing.
        what: &'static str,
    },
    /// No NUMA node in the text.
    #[error("no NUMA node is here: no line such as `node 0 cpus: 0 1 2 3`")]
    NoNode,
    /// Not JSON.
    #[error("this is not JSON: {0}")]
    BadJson(String),
    /// A key of a model's config that is needed.
    #[error("{key} is {found}, not {wanted}")]
    BadKey {
        /// Its name.
        key: &'static str,
        /// The value that is there.
        found: String,
        /// The value that should be there.
        wanted: &'static str,
    },
    /// The two texts name different numbers of GPUs.
    #[error("the topology has {topo} GPUs, nvidia-smi -q -x has {listed}")]
    CountsDiffer {
        /// In the matrix.
        topo: usize,
        /// In the XML.
        listed: usize,
    },
}

impl Fault {
    /// The fault at `line`, counted from 1.
    #[must_use]
    pub fn at(self, line: usize) -> Mistake {
        Mistake { line: Some(line), fault: self }
    }

    /// The fault of the text as a whole.
    #[must_use]
    pub fn whole(self) -> Mistake {
        Mistake { line: None, fault: self }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Fault::Empty | Fault::NoMatrix => {
                "give the whole output of `nvidia-smi topo -m` (or of `rocm-smi --showtopo`), its first line included"
            }
            Fault::NvidiaSmiFailed(_) => "run it on the host that has the GPUs, and check that its driver is loaded",
            Fault::ShortRow { .. } | Fault::NoRow(_) | Fault::StrayRow(_) => {
                "the text seems cut or edited: record it again with `nvidia-smi topo -m > topo.txt`"
            }
            Fault::UnknownLink(_) => "known are X, SYS, NODE, PHB, PXB, PIX and NV followed by a number",
            Fault::UnknownLinkType(_) => "known are XGMI and PCIE",
            Fault::NoLinkTypes | Fault::AmdSmi => {
                "record it with `rocm-smi --showtopo > topo.txt`, and tell the memory by --gpu-memory"
            }
            Fault::UnknownStatus(_) => {
                "known are X, OK, CNS, GNS, TNS, NS, DR and U, as `nvidia-smi topo -p2p r` prints them"
            }
            Fault::BadList(_) => "a list has numbers and ranges with commas between them, or is N/A",
            Fault::BadXml(_) | Fault::OtherXml(_) => "record it with `nvidia-smi -q -x > gpus.xml`",
            Fault::NoGpu => "run `nvidia-smi -L` on that host: if it lists none, the driver sees none",
            Fault::NoField { .. } => "record it again with `nvidia-smi -q -x > gpus.xml`, by a user who may read it",
            Fault::NoNode => "record it with `numactl -H > numa.txt`, or leave --numa out to read /sys on this host",
            Fault::BadJson(_) => "give a model's config.json, or the folder that it is in",
            Fault::BadKey { .. } => {
                "give the config.json of a decoder-only language model, as the Hugging Face hub has it"
            }
            Fault::CountsDiffer { .. } => "record both on the same host, in the same container",
        }
    }
}
