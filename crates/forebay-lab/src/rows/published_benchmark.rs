//! The public benchmark that this project answers, as it was measured: two RTX 4090 (24 GB, `nvidia-smi topo -m`: SYS), 300
//! requests at once, prompts of 100 tokens, answers of up to 600. It lacks the fourth arrangement, two TP=1 replicas.

/// The load: requests, tokens of each prompt, tokens of each answer at most.
pub const LOAD: (u32, u32, u32) = (300, 100, 600);

/// A column of its table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// The name that it has here.
    pub arm: &'static str,
    /// The arrangement behind that name.
    pub what: &'static str,
    /// The fourteen rows, in the order of [`super::table::benchmark_rows`].
    pub rows: [f64; 14],
}

/// A model's three columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelColumns {
    /// The short name of the model, as in the names of `config/sim/`.
    pub model: &'static str,
    /// S1, S3 and S2.
    pub columns: [Column; 3],
}

const S1: &str = "one GPU, TP=1";
const S3: &str = "TP=1 on a host with two GPUs";
const S2: &str = "two GPUs, TP=2";

/// The table.
#[rustfmt::skip]
pub const MEASURED: [ModelColumns; 2] = [
    ModelColumns { model: "qwen7b", columns: [
        Column { arm: "S1", what: S1, rows: [
            300.0, 48.35, 30000.0, 161_719.0, 6.21, 620.52, 3344.91, 3965.41, 1818.40, 34395.81, 48.38, 91.12, 20.70, 10.97] },
        Column { arm: "S3", what: S3, rows: [
            300.0, 106.97, 30000.0, 162_207.0, 2.80, 280.46, 1516.37, 1796.83, 34768.42, 88093.83, 32.72, 86.83, 30.56, 11.50] },
        Column { arm: "S2", what: S2, rows: [
            300.0, 35.08, 30000.0, 162_191.0, 8.55, 855.28, 4623.98, 5479.26, 2226.99, 3921.81, 54.67, 109.14, 18.29, 9.16] },
    ] },
    ModelColumns { model: "llama8b", columns: [
        Column { arm: "S1", what: S1, rows: [
            300.0, 72.42, 30000.0, 165_500.0, 4.14, 414.28, 2285.44, 2699.72, 1934.14, 43966.05, 63.14, 144.73, 15.83, 6.91] },
        Column { arm: "S3", what: S3, rows: [
            300.0, 190.69, 30000.0, 166_019.0, 1.57, 157.32, 870.61, 1027.93, 80444.02, 178_349.91, 33.33, 96.93, 30.00, 10.31] },
        Column { arm: "S2", what: S2, rows: [
            300.0, 49.22, 30000.0, 164_855.0, 6.10, 609.55, 3349.59, 3959.14, 2450.92, 4586.66, 64.61, 121.51, 15.48, 8.23] },
    ] },
];
