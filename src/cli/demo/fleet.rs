//! The demo's simulated servers, and the proxy's configuration before them: a pool for each arrangement, and for `--live` one
//! pool with two arms.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay_fleet::config::model::{Admin, ArmConfig, BackendConfig, Config, Listen, PoolConfig};
use forebay_sim::profile::Profile;
use forebay_sim::server::http::{Sim, SimOptions, listen, serve_sim};

/// The arrangement that takes the longest.
pub(super) const LONGEST: &str = "S3";
/// The model of the pool that has the live traffic.
pub(super) const LIVE: &str = "live";

/// An arrangement of simulated servers.
#[derive(Clone, Debug)]
pub(super) struct SimArm {
    pub(super) name: &'static str,
    pub(super) profile: String,
    pub(super) replicas: u32,
}

/// The benchmark's three arrangements, and the one that it lacks.
pub(super) fn arms(model: &str) -> Vec<SimArm> {
    let arm = |name, kind: &str, replicas| SimArm { name, profile: format!("{kind}-{model}"), replicas };
    vec![
        arm("S1", "rtx4090-tp1", 1),
        arm("S3", "rtx4090x2-tp1", 1),
        arm("S2", "rtx4090-tp2", 1),
        arm("S4", "rtx4090-tp1", 2),
    ]
}

/// A server that runs.
pub(super) struct Server {
    address: SocketAddr,
    sim: Arc<Sim>,
}

/// An arrangement that runs.
pub(super) struct Running {
    pub(super) name: String,
    /// The model that requests for it ask for.
    pub(super) model: String,
    /// The model that its GPUs serve, by its own name.
    pub(super) serves: String,
    pub(super) gpus: u32,
    pub(super) max_num_seqs: u32,
    pub(super) backends: Vec<Server>,
}

impl Running {
    async fn start(arm: &SimArm, name: &str, model: String, time_scale: f64, seed: u64) -> Result<Running, String> {
        let profile = Profile::load(&arm.profile).map_err(|error| error.to_string())?;
        let mut backends = Vec::new();
        for replica in 0..arm.replicas {
            let options = SimOptions {
                served_model_names: vec![model.clone()],
                time_scale,
                // Two replicas with one seed would give equal answers of equal lengths, in step.
                seed: seed.wrapping_add(u64::from(replica)),
                ..SimOptions::of(profile.clone())
            };
            let refused = |error: std::io::Error| format!("cannot listen on a loopback port: {error}");
            let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(refused)?;
            let address = listener.local_addr().map_err(refused)?;
            let sim = Sim::new(options);
            tokio::spawn(serve_sim(listener, Arc::clone(&sim), std::future::pending()));
            backends.push(Server { address, sim });
        }
        let max_num_seqs = profile.scheduler.max_num_seqs;
        let (serves, gpus) = (profile.model, profile.gpus * arm.replicas);
        Ok(Running { name: name.to_owned(), model, serves, gpus, max_num_seqs, backends })
    }

    /// The base URLs of its servers.
    pub(super) fn bases(&self) -> impl Iterator<Item = String> + '_ {
        self.backends.iter().map(|server| format!("http://{}", server.address))
    }

    /// The first of them.
    pub(super) fn first(&self) -> String {
        self.bases().next().unwrap_or_default()
    }

    fn config(&self) -> Result<ArmConfig, String> {
        let mut backends = Vec::new();
        for url in self.bases() {
            backends.push(BackendConfig::of(url.parse().map_err(|error| format!("{url}: {error}"))?));
        }
        Ok(ArmConfig { gpus: self.gpus, ..ArmConfig::of(self.name.clone(), backends) })
    }
}

/// All that runs.
pub(super) struct Fleet {
    /// One for each arrangement.
    pub(super) arms: Vec<Running>,
    /// The two arms of the live traffic, where it is wanted.
    pub(super) live: Vec<Running>,
}

impl Fleet {
    pub(super) async fn start(arms: &[SimArm], live: bool, time_scale: f64, seed: u64) -> Result<Fleet, String> {
        let mut fleet = Fleet { arms: Vec::new(), live: Vec::new() };
        for arm in arms {
            let model = Profile::load(&arm.profile).map_err(|error| error.to_string())?.model;
            // A pool is chosen by its model, so each arm serves it under a name of its own.
            let model = format!("{model} {}", arm.name);
            fleet.arms.push(Running::start(arm, arm.name, model, time_scale, seed).await?);
        }
        let shown = if live { vec![("S4", "tp1x2"), ("S2", "tp2")] } else { Vec::new() };
        for (arm, name) in shown {
            let Some(arm) = arms.iter().find(|one| one.name == arm) else { continue };
            fleet.live.push(Running::start(arm, name, LIVE.to_owned(), time_scale, seed).await?);
        }
        Ok(fleet)
    }

    /// Every arrangement and every live arm.
    pub(super) fn all(&self) -> impl Iterator<Item = &Running> {
        self.arms.iter().chain(&self.live)
    }

    /// Returns the number of servers that run.
    pub(super) fn servers(&self) -> usize {
        self.all().map(|arm| arm.backends.len()).sum()
    }

    /// The worst lateness of a server, at the 99th percentile.
    pub(super) fn lag(&self) -> Duration {
        let servers = self.all().flat_map(|arm| &arm.backends);
        servers.map(|server| server.sim.pacer().lag().p99).max().unwrap_or_default()
    }

    /// The proxy's configuration: free ports on loopback.
    pub(super) fn config(&self) -> Result<Config, String> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut pools = Vec::new();
        for arm in &self.arms {
            pools.push(PoolConfig { model: arm.model.clone(), arms: vec![arm.config()?], ..PoolConfig::default() });
        }
        if let Some(first) = self.live.first() {
            let arms = self.live.iter().map(Running::config).collect::<Result<_, _>>()?;
            pools.push(PoolConfig { model: first.model.clone(), arms, ..PoolConfig::default() });
        }
        Ok(Config {
            listen: Listen { address: loopback, ..Listen::default() },
            admin: Admin { address: loopback, ..Admin::default() },
            pools,
            ..Config::default()
        })
    }
}
