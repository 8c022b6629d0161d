//! `forebay plan`: how the GPUs of a host can serve a model. Reads what the host's own tools say, or files in which they were
//! recorded elsewhere, and prints each layout with its room, what speaks against it, and its launch lines. Starts nothing.

mod files;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use forebay_core::units::parse_size;
use forebay_lab::plan::Plan;
use forebay_lab::plan::bytes::Bytes;
use forebay_lab::plan::memory::ServingLoad;
use forebay_lab::plan::mistake::Mistake;
use forebay_lab::plan::model::{self, Bits};
use forebay_lab::plan::report;

/// The arguments of `forebay plan`.
#[derive(Debug, clap::Args)]
#[command(
    about = "List the layouts in which a host's GPUs can serve a model, with their launch lines",
    long_about = "List the layouts in which a host's GPUs can serve a model: replicas (TP=1), groups of tensor parallelism, halves of both. For each \
        layout the room for weights and KV cache, what speaks against it (GPUs that are SYS apart, different NUMA nodes, a GPU \
        in use, …), and the lines that start its servers.\n\n\
        Run it on the host of the GPUs, where it asks nvidia-smi and reads /sys; or record there what they say and give the \
        files:\n\n  \
        nvidia-smi topo -m > topo.txt; nvidia-smi topo -p2p r >> topo.txt\n  \
        nvidia-smi -q -x > gpus.xml; numactl -H > numa.txt\n  \
        forebay plan --topo topo.txt --gpus gpus.xml --numa numa.txt --model-config DIR\n\n\
        A hint is not a measurement: `--out` writes an experiment.toml that compares the layouts.",
    after_help = "Exit codes: 0 some layout would start, 1 none would or the host's tools failed, 2 wrong usage or a file with a \
        mistake in it."
)]
pub struct Args {
    /// The output of `nvidia-smi topo -m` (and of `nvidia-smi topo -p2p r` behind it), or of `rocm-smi --showtopo`
    #[arg(long, value_name = "FILE")]
    topo: Option<PathBuf>,
    /// The output of `nvidia-smi -q -x`
    #[arg(long, value_name = "FILE")]
    gpus: Option<PathBuf>,
    /// The output of `numactl -H`
    #[arg(long, value_name = "FILE")]
    numa: Option<PathBuf>,
    /// The memory of each GPU, such as 24GiB, where no `nvidia-smi -q -x` tells it
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "gpus")]
    gpu_memory: Option<Bytes>,
    /// A model's config.json, or its folder (whose safetensors files tell the true size of the weights)
    #[arg(long, value_name = "PATH")]
    model_config: Option<PathBuf>,
    /// The model's name in the launch lines [default: the folder, or what its config says]
    #[arg(long, value_name = "NAME", value_parser = model_name)]
    model: Option<String>,
    /// vLLM's --dtype: auto, bfloat16, float16, float32
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: Dtype,
    /// vLLM's --kv-cache-dtype: auto, or fp8
    #[arg(long, default_value = "auto", value_parser = dtype)]
    kv_cache_dtype: Dtype,
    /// vLLM's --gpu-memory-utilization, written into every launch line: vLLM's default depends on its version
    #[arg(long, default_value_t = 0.9, value_parser = utilization)]
    gpu_memory_utilization: f64,
    /// The memory that a server holds on each GPU beside weights and KV cache (activations, sampling, CUDA graphs, NCCL)
    /// [default: a range, by the model and vLLM's limits on this GPU]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    overhead: Option<Bytes>,
    /// vLLM's --max-model-len [default: the model's own, or what fits into every server]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    max_model_len: Option<u64>,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 100, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    input_len: u64,
    /// Tokens of an answer
    #[arg(long, default_value_t = 600, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    output_len: u64,
    /// Requests at once
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    concurrency: u64,
    /// The first server's port; those of the others follow
    #[arg(long, default_value_t = 8001, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write forebay.toml, experiment.toml and launch.sh into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The layout of forebay.toml, by its name [default: the first that would start]
    #[arg(long, value_name = "NAME", requires = "out")]
    layout: Option<String>,
}

/// The longest context that can be asked for.
const MOST: u64 = 100_000_000;

/// A dtype as it was written, and its bits; `auto` has none.
#[derive(Clone, Debug)]
struct Dtype {
    name: String,
    bits: Option<Bits>,
}

impl Dtype {
    fn told(&self) -> Option<String> {
        self.bits.map(|_| self.name.clone())
    }
}

fn dtype(text: &str) -> Result<Dtype, String> {
    let bits = model::bits_of(text);
    if bits.is_none() && text != "auto" {
        return Err("write auto, bfloat16, float16, float32 or fp8".to_owned());
    }
    Ok(Dtype { name: text.to_owned(), bits })
}

fn utilization(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.05..=1.0).contains(share));
    share.ok_or_else(|| "write a share of the memory between 0.05 and 1, such as 0.9".to_owned())
}

fn size(text: &str) -> Result<Bytes, String> {
    // sizes of memory are often halves of a GiB, which the configuration's sizes have no use for
    let decimal = |unit: &str, bytes: f64| Some(text.strip_suffix(unit)?.trim().parse::<f64>().ok()? * bytes);
    let halves = decimal("GiB", 1_073_741_824.0).or_else(|| decimal("MiB", 1_048_576.0));
    match halves.filter(|bytes| (0.0..1e15).contains(bytes)) {
        Some(bytes) => Ok(Bytes(bytes as u64)),
        None => parse_size(text).map(Bytes),
    }
}

fn model_name(text: &str) -> Result<String, String> {
    if text.trim() != text || text.is_empty() || text.chars().any(char::is_control) {
        return Err("a model's name is one line without spaces around it".to_owned());
    }
    Ok(text.to_owned())
}

/// The reason why there is no plan.
#[derive(Debug)]
enum PlanError {
    /// A text has a mistake in it.
    Mistake { source: String, mistake: Mistake },
    /// A file cannot be read or written.
    File { what: String, error: std::io::Error },
    /// A tool of the host is not there, or failed.
    Tool { command: String, said: String },
    /// The arguments make no sense together.
    Usage(String),
}

impl PlanError {
    fn exit(&self) -> ExitCode {
        match self {
            PlanError::Tool { .. } => ExitCode::FAILURE,
            PlanError::Mistake { .. } | PlanError::File { .. } | PlanError::Usage(_) => ExitCode::from(2),
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Mistake { source, mistake: Mistake { line, fault } } => {
                let place = line.map_or_else(String::new, |line| format!(":{line}"));
                write!(f, "{source}{place}: {fault}\n  hint: {}", fault.hint())
            }
            PlanError::File { what, error } => write!(f, "{what}: {error}"),
            PlanError::Tool { command, said } => write!(
                f,
                "`{command}` failed: {said}\n  hint: run `forebay plan` on the host that has the GPUs, or record there\n    \
                 nvidia-smi topo -m > topo.txt; nvidia-smi topo -p2p r >> topo.txt\n    \
                 nvidia-smi -q -x > gpus.xml; numactl -H > numa.txt\n  and give the files here: forebay plan --topo topo.txt \
                 --gpus gpus.xml --numa numa.txt"
            ),
            PlanError::Usage(what) => f.write_str(what),
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match perform(&args) {
        Ok(plan) => {
            let text = if args.json { json(&plan) } else { report::text(&plan) };
            // a reader that has left needs no answer
            _ = std::io::stdout().write_all(text.as_bytes());
            if plan.starting().next().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failed) => {
            eprintln!("forebay plan: {failed}");
            failed.exit()
        }
    }
}

fn json(plan: &Plan) -> String {
    serde_json::to_string_pretty(plan).expect("a tree of numbers and strings is JSON") + "\n"
}

fn perform(args: &Args) -> Result<Plan, PlanError> {
    let host = files::host(args)?;
    let model = args.model_config.as_deref().map(|path| files::model(args, path)).transpose()?;
    let folder = args.model_config.as_deref().filter(|path| path.is_dir()).map(|path| path.display().to_string());
    let named = args.model.clone().or(folder).or_else(|| model.as_ref()?.named.clone());
    let load = ServingLoad {
        utilization: args.gpu_memory_utilization,
        overhead: args.overhead,
        dtype: args.dtype.told(),
        kv_cache_dtype: args.kv_cache_dtype.told(),
        kv_bits: args.kv_cache_dtype.bits,
        max_model_len: args.max_model_len,
        input: args.input_len,
        output: args.output_len,
        concurrency: args.concurrency,
    };
    let plan = Plan::of(&host, named.unwrap_or_else(|| "MODEL".to_owned()), model, load, args.base_port);
    check_ports(&plan)?;
    if let Some(folder) = &args.out {
        files::write(&plan, folder, args.layout.as_deref())?;
    }
    Ok(plan)
}

/// Forebay's own ports, unless its configuration says otherwise.
const OWN_PORTS: [u16; 2] = [8080, 8081];

fn check_ports(plan: &Plan) -> Result<(), PlanError> {
    let mut ports = plan.layouts.iter().flat_map(|planned| planned.layout.servers()).map(|server| server.port);
    match ports.find(|port| OWN_PORTS.contains(port)) {
        Some(port) => Err(PlanError::Usage(format!(
            "a server would listen on {port}, which is Forebay's own\n  hint: give another --base-port, such as 8001 or 9001"
        ))),
        None => Ok(()),
    }
}
