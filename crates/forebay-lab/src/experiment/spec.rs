//! What an experiment is, once its file was found right: plain values.

use std::path::PathBuf;
use std::time::Duration;

use crate::load::dataset::Prefixes;
use crate::load::run::WarmUp;
use crate::load::workload::Endpoint;
use crate::rows::row_file::Offered;
use crate::rows::slo::Slo;
use forebay_core::routing::policy::PolicyName;
use forebay_fleet::config::model::BackendUrl;

/// An experiment.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Its name.
    pub name: String,
    /// The model asked for, as its servers call it.
    pub model: String,
    /// The folder for rows and logs.
    pub out: PathBuf,
    /// The number of times that all servers are started again.
    pub starts: u32,
    /// The number of turns that each arm has between a start and the next.
    pub blocks: u32,
    /// The speed of its servers as a multiple of real ones', where they are simulated.
    pub time_scale: Option<f64>,
    /// Commands whose output describes the machine.
    pub record: Vec<Vec<String>>,
    /// The loads, each of which is sent in every turn.
    pub loads: Vec<LoadSpec>,
    /// The warm-up before each epoch, which is not counted.
    pub warm_up: WarmUp,
    /// The limits that a request must meet to count as good.
    pub slo: Option<Slo>,
    /// The servers.
    pub servers: Vec<ServerSpec>,
    /// The arms.
    pub arms: Vec<ArmSpec>,
}

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadSpec {
    /// The way in which requests are offered, and how fast.
    pub offered: Offered,
    /// Requests under way at once, at most.
    pub max_concurrency: Option<u32>,
    /// The number of requests.
    pub num_prompts: u32,
    /// Tokens of each prompt, behind its beginning if there is one.
    pub input_len: u32,
    /// Beginnings that prompts share; none: they share nothing.
    pub prefixes: Option<Prefixes>,
    /// Tokens of each answer, at most.
    pub output_len: u32,
    /// True if answers go on up to the limit.
    pub ignore_eos: bool,
    /// The route.
    pub endpoint: Endpoint,
    /// Of the sampling; none: the servers' own.
    pub temperature: Option<f64>,
    /// For prompts and times; each block has its own, made from it.
    pub seed: u64,
}

/// A server under test.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// Its name, and that of its log.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Arguments (and `NAME=value` for its environment) to be added, one list after the other, where it does not come up
    /// without them.
    pub or_else: Vec<Vec<String>>,
    /// Environment beside the runner's own.
    pub env: Vec<(String, String)>,
    /// The folder that it runs in; none: the runner's.
    pub cwd: Option<PathBuf>,
    /// The URL at which it listens.
    pub url: BackendUrl,
    /// The path that answers 200 once it is ready.
    pub health: String,
    /// The time that it may take to get ready.
    pub start_timeout: Duration,
    /// The time that it may take to end by itself once it is told to.
    pub stop_timeout: Duration,
    /// Servers that must be ready before it is started.
    pub after: Vec<usize>,
}

/// A choice under comparison.
#[derive(Clone, Debug)]
pub struct ArmSpec {
    /// Its name.
    pub name: String,
    /// GPUs that it occupies.
    pub gpus: u32,
    /// The price, in any unit of money an hour.
    pub price: Option<f64>,
    /// `--max-num-seqs` of each of its servers, where known.
    pub max_num_seqs: Option<u32>,
    /// Its servers.
    pub servers: Vec<usize>,
    /// The route of its load to them.
    pub route: Route,
    /// The servers of all arms of a stage are up at once.
    pub stage: String,
    /// It takes part in the last so many starts only: what is added to a comparison comes when that is done.
    pub starts: u32,
    /// It takes part in so many blocks of each start only.
    pub blocks: u32,
}

/// The route of a load to an arm's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Straight to the one server.
    Direct,
    /// Through a Forebay with that policy.
    Forebay(PolicyName),
}

impl Route {
    /// In words, for plans and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Route::Direct => "direct",
            Route::Forebay(policy) => policy.as_str(),
        }
    }
}

impl Experiment {
    /// The stages, in the order of their first arms.
    #[must_use]
    pub fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = Vec::new();
        for arm in &self.arms {
            if !stages.contains(&arm.stage.as_str()) {
                stages.push(&arm.stage);
            }
        }
        stages
    }
}
