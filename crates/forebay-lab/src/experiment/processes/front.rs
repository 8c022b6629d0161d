//! The Forebay before an arm's servers: a process of this same binary, started for one turn, so that what it has learned is
//! that turn's warm-up and nothing else, and so that no idle one asks servers under test for their metrics.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{self, Launch, LaunchError, Process};
use crate::experiment::spec::{ArmSpec, Experiment};
use crate::load::client::Client;
use crate::load::sampler::MAX_TEXT;
use forebay_core::clock::Clock;
use forebay_core::routing::policy::PolicyName;
use forebay_fleet::probe::ProbeClient;

const READY: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);
/// Nothing is under way when it is told to end.
const GRACE: Duration = Duration::from_secs(2);

/// A Forebay that is up, until this is dropped.
pub(crate) struct Front {
    /// The base URL at which it takes requests.
    pub(crate) base: String,
    admin: SocketAddr,
    process: Vec<Process>,
}

/// The reason why a Forebay is not up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrontError {
    /// The system refused.
    #[error("cannot prepare a Forebay in {}: {error}", path.display())]
    Io {
        /// Its configuration.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The binary does not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It does not list the model.
    #[error("the Forebay of {arm} did not serve {model} within {} s; {words}", READY.as_secs())]
    NotReady {
        /// The arm.
        arm: String,
        /// The model.
        model: String,
        /// The end of its log.
        words: String,
    },
}

/// Starts the Forebay of an arm, and waits until it serves the model.
pub(crate) async fn start(
    experiment: &Experiment,
    arm: &ArmSpec,
    policy: PolicyName,
    binary: &Path,
    client: &Client,
) -> Result<Front, FrontError> {
    let out = &experiment.out;
    let path = out.join("logs").join(format!("forebay-{}.toml", arm.name));
    let failed = |error| FrontError::Io { path: path.clone(), error };
    let [data, admin] = free_addresses().map_err(failed)?;
    fs::write(&path, config(experiment, arm, policy, data, admin)).map_err(failed)?;
    let command = [binary, Path::new("serve"), Path::new("--config"), &path].map(|word| word.display().to_string());
    let launch = Launch {
        name: "forebay",
        command: &command,
        env: &[],
        cwd: None,
        log: out.join("logs").join(format!("forebay-{}.log", arm.name)),
        grace: GRACE,
    };
    let mut process = Process::start(launch, &out.join("running"))?;
    let base = format!("http://{data}");
    // Its own list of models, since `/ready` says that it listens and not that it has found this model's servers.
    let (clock, url) = (Clock::system(), format!("{base}/v1/models"));
    let begun = clock.now();
    loop {
        let listed = client.json(&url, None).await;
        let serves = |list: &serde_json::Value| {
            list["data"]
                .as_array()
                .is_some_and(|models| models.iter().any(|one| one["id"] == experiment.model.as_str()))
        };
        if listed.as_ref().is_ok_and(serves) {
            return Ok(Front { base, admin, process: vec![process] });
        }
        if process.ended().is_some() || clock.now().since(begun) > READY {
            let words = process.last_words();
            return Err(FrontError::NotReady { arm: arm.name.clone(), model: experiment.model.clone(), words });
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Front {
    /// Keeps what its `/metrics` say at the end of a turn in a file: its CPU time and how good its predictions were, among others.
    /// The error is for people.
    pub(crate) async fn keep_metrics(&self, path: &Path) -> Result<(), String> {
        let uri = format!("http://{}/metrics", self.admin).parse().map_err(|error| format!("{error}"))?;
        let text =
            ProbeClient::new(READY).get_ok(uri, None, READY, MAX_TEXT).await.map_err(|error| error.to_string())?;
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        process::stop(&mut self.process);
    }
}

/// Two addresses that nothing listens on, held together so that they differ.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    // Both held at once, or the system might give the same port twice. Another process may take one before Forebay does:
    // then it is not ready.
    let held = [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    Ok([held[0].local_addr()?, held[1].local_addr()?])
}

fn config(experiment: &Experiment, arm: &ArmSpec, policy: PolicyName, data: SocketAddr, admin: SocketAddr) -> String {
    let mut text = format!(
        "[listen]\naddress = \"{data}\"\n\n[admin]\naddress = \"{admin}\"\n\n[[pools]]\nmodel = {}\n\
         policy = \"{policy}\"\n\n[[pools.arms]]\nname = \"{}\"\ngpus = {}\nbackends = [\n",
        toml::Value::from(experiment.model.as_str()),
        arm.name,
        arm.gpus
    );
    for index in &arm.servers {
        // writing to a string cannot fail
        _ = writeln!(text, "  {{ url = \"{}\" }},", experiment.servers[*index].url);
    }
    text.push_str("]\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_configuration_is_one_that_forebay_takes() {
        let text = "name = \"x\"\nmodel = \"a \\\"b\\\"\"\n[load]\nnum_prompts = 1\ninput_len = 1\noutput_len = 1\n\
                    [[servers]]\nname = \"one\"\nurl = \"http://127.0.0.1:1001\"\ncommand = \"true\"\n\
                    [[servers]]\nname = \"two\"\nurl = \"http://127.0.0.1:1002\"\ncommand = \"true\"\n\
                    [[arms]]\nname = \"a\"\ngpus = 2\nservers = [\"one\", \"two\"]\npolicy = \"round_robin\"\n";
        let experiment = crate::experiment::read(Path::new("x.toml"), text, &|_| None).unwrap();
        let [data, admin] = free_addresses().unwrap();
        let written = config(&experiment, &experiment.arms[0], PolicyName::RoundRobin, data, admin);
        let loaded = forebay_fleet::config::load_text(Path::new("f.toml"), &written, &|_| None).unwrap().config;
        assert_eq!((loaded.listen.address, loaded.admin.address), (data, admin));
        assert_eq!((loaded.pools[0].model.as_str(), loaded.pools[0].policy), ("a \"b\"", PolicyName::RoundRobin));
        assert_eq!((loaded.pools[0].arms[0].name.as_str(), loaded.pools[0].arms[0].backends.len()), ("a", 2));
    }
}
