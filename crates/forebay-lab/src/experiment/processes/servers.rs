//! The servers of a start: brought up together, each as soon as those that it names are ready, and with plainer settings where
//! it does not come up without them. They end together, too, whatever becomes of the experiment.

use std::path::Path;
use std::time::Duration;

use super::health::{self, Silence};
use super::process::{self, Launch, LaunchError, Process};
use crate::experiment::journal::{Journal, starting};
use crate::experiment::spec::{Experiment, ServerSpec};
use forebay_core::clock::{Clock, Time};
use forebay_fleet::probe::ProbeClient;

/// Between two looks at those that start.
const LOOK: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(1);

/// Servers that are up, until this is dropped.
pub(crate) struct Running(Vec<Process>);

/// The reason why servers did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Something else listens there.
    #[error(
        "{url} is in use already, so {server} cannot listen there: stop what listens, or give the server another port"
    )]
    Taken {
        /// The server's name.
        server: String,
        /// Its address.
        url: String,
    },
    /// The system refused.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It did not get ready, whatever was tried.
    #[error("{server} {what}; {words}")]
    Failed {
        /// The server's name.
        server: String,
        /// The event that kept it from getting ready.
        what: String,
        /// The end of its log.
        words: String,
    },
}

/// The number of times that settings with which a server came up before are tried in one start.
const TRIES: u32 = 3;

/// One server on its way.
struct Starting<'a> {
    spec: &'a ServerSpec,
    index: usize,
    variant: usize,
    /// It came up like this before: what fails now has another reason than its settings.
    proven: bool,
    tries: u32,
    process: Option<Process>,
    begun: Time,
    silence: Silence,
    took: Option<Duration>,
}

/// Brings servers up, and waits until all are ready.
pub(crate) async fn start(
    experiment: &Experiment,
    which: &[usize],
    journal: &mut Journal,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Running, StartError> {
    let servers = || which.iter().map(|index| &experiment.servers[*index]);
    if let Some(server) = servers().find(|server| health::is_taken(&server.url)) {
        return Err(StartError::Taken { server: server.name.clone(), url: server.url.to_string() });
    }
    let out = experiment.out.as_path();
    let (clock, client) = (Clock::system(), ProbeClient::knocking(CONNECT));
    let mut all: Vec<Starting<'_>> =
        which.iter().map(|index| Starting::of(&experiment.servers[*index], *index, journal, clock.now())).collect();
    while all.iter().any(|one| one.took.is_none()) {
        let ready: Vec<usize> = all.iter().filter(|one| one.took.is_some()).map(|one| one.index).collect();
        for one in all.iter_mut().filter(|one| one.took.is_none()) {
            // a server that this start does not have cannot be waited for
            let may_start = one.spec.after.iter().all(|index| ready.contains(index) || !which.contains(index));
            if !may_start {
                continue;
            }
            if one.process.is_none() {
                one.launch(out, clock.now())?;
                continue;
            }
            if health::answers(&client, &one.spec.url, &one.spec.health).await {
                one.ready(journal, clock.now(), say);
            } else if let Some(what) = one.failed(clock.now()) {
                one.again(what, say)?;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(Running(all.into_iter().filter_map(|one| one.process).collect()))
}

impl<'a> Starting<'a> {
    fn of(spec: &'a ServerSpec, index: usize, journal: &Journal, now: Time) -> Starting<'a> {
        let variant = journal.variant(&spec.name).min(spec.or_else.len());
        let proven = journal.longest(&starting(&spec.name)).is_some();
        let silence = Silence::since(now);
        Starting { spec, index, variant, proven, tries: 0, process: None, begun: now, silence, took: None }
    }

    /// Its command and environment, with what this variant adds: `NAME=value` goes into the environment.
    fn command(&self) -> (Vec<String>, Vec<(String, String)>) {
        let (mut command, mut env) = (self.spec.command.clone(), self.spec.env.clone());
        let more = self.variant.checked_sub(1).map_or(&[][..], |index| &self.spec.or_else[index]);
        for word in more {
            match word.split_once('=').filter(|(name, _)| !name.starts_with('-')) {
                Some((name, value)) => env.push((name.to_owned(), value.to_owned())),
                None => command.push(word.clone()),
            }
        }
        (command, env)
    }

    fn launch(&mut self, out: &Path, now: Time) -> Result<(), StartError> {
        let (command, env) = self.command();
        let launch = Launch {
            name: &self.spec.name,
            command: &command,
            env: &env,
            cwd: self.spec.cwd.as_deref(),
            log: out.join("logs").join(format!("{}.log", self.spec.name)),
            grace: self.spec.stop_timeout,
        };
        self.process = Some(Process::start(launch, &out.join("running"))?);
        (self.begun, self.silence) = (now, Silence::since(now));
        Ok(())
    }

    fn ready(&mut self, journal: &mut Journal, now: Time, say: &(dyn Fn(&str) + Sync)) {
        let took = now.since(self.begun);
        journal.note(starting(&self.spec.name), took, Some(self.variant));
        let how = if self.variant == 0 { String::new() } else { format!(", with {}", self.added()) };
        say(&format!("{} is ready after {:.1} s{how}", self.spec.name, took.as_secs_f64()));
        self.took = Some(took);
    }

    fn added(&self) -> String {
        self.variant.checked_sub(1).map_or_else(String::new, |index| self.spec.or_else[index].join(" "))
    }

    /// Says what went wrong with it, if something did.
    fn failed(&mut self, now: Time) -> Option<String> {
        let process = self.process.as_mut()?;
        if let Some(status) = process.ended() {
            return Some(format!("ended while it started ({status})"));
        }
        if self.silence.is_final(process.log_length(), || process.said(), now) {
            return Some("hangs after an exception".to_owned());
        }
        let limit = self.spec.start_timeout;
        (now.since(self.begun) > limit).then(|| format!("was not ready within {} s", limit.as_secs()))
    }

    /// Ends it, and has it started again: as it was if it came up so before, else with the next of its other settings.
    fn again(&mut self, what: String, say: &(dyn Fn(&str) + Sync)) -> Result<(), StartError> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let words = process.last_words();
        process::stop(&mut vec![process]);
        self.tries += 1;
        let exhausted = if self.proven { self.tries >= TRIES } else { self.variant >= self.spec.or_else.len() };
        if exhausted {
            return Err(StartError::Failed { server: self.spec.name.clone(), what, words });
        }
        if !self.proven {
            self.variant += 1;
        }
        let how = if self.proven { "as it was".to_owned() } else { format!("with {}", self.added()) };
        say(&format!("{} {what}; {words}\nit is started again {how}", self.spec.name));
        Ok(())
    }
}

impl Running {
    /// One that has ended, and its last words.
    pub(crate) fn dead(&mut self) -> Option<String> {
        self.0.iter_mut().find_map(|process| {
            let status = process.ended()?;
            Some(format!("{} ended ({status}); {}", process.name(), process.last_words()))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        process::stop(&mut self.0);
    }
}
