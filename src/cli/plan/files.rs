//! What `forebay plan` reads and writes: the host's tools or recorded files, a model's folder, the files of `--out`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Command;

use super::{Args, PlanError};
use forebay_lab::plan::bytes::Bytes;
use forebay_lab::plan::host::gpu::{self, Gpu};
use forebay_lab::plan::host::numa::{self, Node, Set};
use forebay_lab::plan::host::{Host, Vendor};
use forebay_lab::plan::host::{rocm, topo};
use forebay_lab::plan::mistake::Mistake;
use forebay_lab::plan::model::{self, Model, Overrides};
use forebay_lab::plan::{Plan, Planned, emit};

/// A larger text is not what it is taken for.
const LARGEST: u64 = 64 << 20;
/// The folder in which the kernel lists NUMA nodes.
const NODES: &str = "/sys/devices/system/node";
/// The mark in the first lines of every file of `--out`.
const OURS: &str = "by `forebay plan`";

/// The host: by the files that were given, which may be of another one; by its own tools where none was.
pub(super) fn host(args: &Args) -> Result<Host, PlanError> {
    let recorded = args.topo.is_some() || args.gpus.is_some();
    let mut vendor = Vendor::Nvidia;
    let (topology, gpus) = if recorded {
        let mut parse = |text: &str| {
            if rocm::is_amd(text) {
                vendor = Vendor::Amd;
                rocm::parse(text)
            } else {
                topo::parse(text)
            }
        };
        let topology = args.topo.as_deref().map(|path| read(path, &mut parse)).transpose()?;
        let gpus = args.gpus.as_deref().map(|path| read(path, gpu::parse)).transpose()?;
        (topology, gpus)
    } else {
        // `-p2p` is not known to old drivers, whose matrix is worth having without it.
        let matrix = tool(&["nvidia-smi", "topo", "-m"])?;
        let p2p = tool(&["nvidia-smi", "topo", "-p2p", "r"]).unwrap_or_default();
        let topology = topo::parse(&format!("{matrix}\n{p2p}")).map_err(in_source("nvidia-smi topo -m"))?;
        let listed = tool(&["nvidia-smi", "-q", "-x"])?;
        (Some(topology), Some(gpu::parse(&listed).map_err(in_source("nvidia-smi -q -x"))?))
    };
    let count = topology.as_ref().map_or(0, |topology| topology.gpus.len());
    let told = |memory| (0..count).map(|index| Gpu::unnamed(index, memory)).collect();
    let gpus = gpus.or_else(|| args.gpu_memory.map(told));
    let nodes = match &args.numa {
        Some(path) => read(path, numa::parse_numactl)?,
        None if recorded => Vec::new(),
        None => own_nodes(),
    };
    let source = args.gpus.as_deref().map_or_else(|| "nvidia-smi".to_owned(), |path| path.display().to_string());
    Host::of(vendor, topology, gpus, nodes).map_err(in_source(&source))
}

fn in_source(source: &str) -> impl FnOnce(Mistake) -> PlanError {
    move |mistake| PlanError::Mistake { source: source.to_owned(), mistake }
}

fn text(path: &Path) -> Result<String, PlanError> {
    let failed = |error| PlanError::File { what: format!("cannot read {}", path.display()), error };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > LARGEST {
        return Err(failed(io::Error::new(ErrorKind::FileTooLarge, format!("it has {size} bytes"))));
    }
    // A recording may have gone through a terminal or another system: what is no UTF-8 in it is no reason to refuse the rest.
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
}

fn read<T>(path: &Path, mut parse: impl FnMut(&str) -> Result<T, Mistake>) -> Result<T, PlanError> {
    parse(&text(path)?).map_err(in_source(&path.display().to_string()))
}

/// Runs one of the host's tools and returns its output.
fn tool(words: &[&str]) -> Result<String, PlanError> {
    let failed = |said: String| PlanError::Tool { command: words.join(" "), said };
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(format!("there is no {} on this machine", words[0])),
        _ => failed(error.to_string()),
    })?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    Err(failed(if err.is_empty() { out } else { err }))
}

/// The NUMA nodes of this machine; none where the kernel does not list them.
fn own_nodes() -> Vec<Node> {
    let Ok(entries) = fs::read_dir(NODES) else { return Vec::new() };
    let node = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some(Node { id, cpus: Set::parse(cpus.trim()).unwrap_or_default() })
    };
    let mut nodes: Vec<Node> = entries.filter_map(|entry| node(entry.ok()?)).collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// The model at `path`: a config.json, or the folder of one.
pub(super) fn model(args: &Args, path: &Path) -> Result<Model, PlanError> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let overrides = Overrides { dtype: args.dtype.bits, files: weights(folder) };
    read(&file, |text| model::parse(text, &overrides))
}

/// The bytes of the weights, by the index of the safetensors files or by the files themselves.
fn weights(folder: &Path) -> Option<Bytes> {
    let index = fs::read_to_string(folder.join("model.safetensors.index.json")).ok();
    let index = index.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    if let Some(size) = index.and_then(|index| index.get("metadata")?.get("total_size")?.as_u64()) {
        return Some(Bytes(size));
    }
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
    let size = files.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.len())).sum();
    (size > 0).then_some(Bytes(size))
}

/// Writes forebay.toml for the layout that was asked for, experiment.toml where there is something to compare, and launch.sh.
pub(super) fn write(plan: &Plan, folder: &Path, wanted: Option<&str>) -> Result<(), PlanError> {
    let all = || plan.layouts.iter().map(|planned| planned.layout.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen = match wanted {
        Some(name) => plan
            .layouts
            .iter()
            .find(|planned| planned.layout.name == name)
            .ok_or_else(|| PlanError::Usage(format!("there is no layout `{name}`\n  hint: there are {}", all())))?,
        None => match plan.starting().next() {
            Some(planned) => planned,
            None => return Ok(()),
        },
    };
    let mut layouts: Vec<&Planned> = vec![chosen];
    layouts.extend(plan.starting().filter(|planned| planned.layout.name != chosen.layout.name));
    let mut files = vec![
        ("forebay.toml", emit::configuration(chosen, &plan.name)),
        ("launch.sh", emit::script(&layouts, plan.vendor)),
    ];
    files.extend(emit::experiment(plan).map(|text| ("experiment.toml", text)));
    let failed = |what: String| move |error| PlanError::File { what, error };
    fs::create_dir_all(folder).map_err(failed(format!("cannot make {}", folder.display())))?;
    for (name, text) in files {
        let path = folder.join(name);
        let theirs = fs::read_to_string(&path).is_ok_and(|old| !old.lines().take(3).any(|line| line.contains(OURS)));
        if theirs {
            let what = format!(
                "{} is there and not from `forebay plan`\n  hint: move it, or give another folder",
                path.display()
            );
            return Err(PlanError::Usage(what));
        }
        fs::write(&path, text).map_err(failed(format!("cannot write {}", path.display())))?;
    }
    Ok(())
}
