//! Puts a changed configuration into force. The file is read again every 2 s and its content compared by hash (a ConfigMap
//! changes by a symlink, which file events miss), and at once on SIGHUP. A change that nobody announced counts once two readings
//! agree, since the file may be half written. A file with mistakes changes nothing: the last good
//! one stays, and the mistakes are logged once. It must never end the process, whatever the file holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{error, info, warn};

use forebay_core::clock::Clock;
use forebay_fleet::config::diff::{diff, in_force};
use forebay_fleet::config::{Config, Loaded, Report};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::Reload;

/// The time between two readings of the file.
const EVERY: Duration = Duration::from_secs(2);
/// The time for which a changed file must stay as it is.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

/// Reads the configuration again.
pub type Load = Arc<dyn Fn() -> Result<Loaded, Box<Report>> + Send + Sync>;
/// Puts a configuration into force; it is called with one that differs from the last.
pub type Apply = Box<dyn FnMut(&Config) + Send>;

/// The watcher: what it needs, and what it remembers.
pub struct ConfigWatcher {
    load: Load,
    apply: Apply,
    telemetry: Arc<Telemetry>,
    hup: Arc<Notify>,
    clock: Clock,
    /// In force.
    config: Config,
    /// Of the file as last judged, good or bad.
    hash: [u8; 32],
    /// Of a file that changed since, read once.
    unsettled: Option<[u8; 32]>,
}

impl ConfigWatcher {
    /// A watcher of the file that `load` reads, of which `first` is in force. `hup` is notified on SIGHUP.
    #[must_use]
    pub fn new(
        first: Loaded,
        load: Load,
        apply: Apply,
        hup: Arc<Notify>,
        (telemetry, clock): (Arc<Telemetry>, Clock),
    ) -> ConfigWatcher {
        ConfigWatcher { load, apply, telemetry, hup, clock, config: first.config, hash: first.hash, unsettled: None }
    }

    /// Watches until it is dropped.
    pub async fn run(mut self) {
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(if self.unsettled.is_some() { SETTLED_AFTER } else { EVERY }) => false,
                () = self.hup.notified() => true,
            };
            let load = Arc::clone(&self.load);
            // A file on a dead network mount must not hold up the runtime.
            match tokio::task::spawn_blocking(move || load()).await {
                Ok(read) => self.take(read, asked),
                Err(panic) => error!(%panic, "reading the configuration failed; the last good one stays"),
            }
        }
    }

    /// One reading. `asked`: by a signal, so that it is answered in the log even if nothing changed.
    fn take(&mut self, read: Result<Loaded, Box<Report>>, asked: bool) {
        let hash = read.as_ref().map_or_else(|report| report.hash(), |loaded| loaded.hash);
        // Who sends SIGHUP has written the file to its end, so one reading is enough.
        if asked {
            self.unsettled = None;
        } else if !self.is_settled(hash) {
            return;
        }
        let same = std::mem::replace(&mut self.hash, hash) == hash;
        let first_mistake = read.as_ref().err().and_then(|report| report.lines().first().map(ToString::to_string));
        let result = match read {
            Err(_) if same && !asked => return,
            Err(report) => {
                for line in report.lines() {
                    error!(mistake = line, "configuration not taken; the last good one stays");
                }
                Reload::Rejected
            }
            Ok(_) if same && !asked => return,
            Ok(loaded) => self.put_into_force(&loaded.config),
        };
        self.telemetry.process.reload(result);
        let told = match result {
            Reload::Applied => ("configuration applied", None),
            Reload::Unchanged => ("configuration unchanged", None),
            Reload::Rejected => ("configuration rejected", first_mistake),
        };
        self.telemetry.events.tell(told.0, None, told.1.as_deref(), self.clock.now());
    }

    /// Returns whether a reading is the last judged, or the same as the one before.
    fn is_settled(&mut self, hash: [u8; 32]) -> bool {
        let before = self.unsettled.take();
        if hash == self.hash || before == Some(hash) {
            return true;
        }
        self.unsettled = Some(hash);
        false
    }

    fn put_into_force(&mut self, new: &Config) -> Reload {
        let diff = diff(&self.config, new);
        if diff.is_empty() {
            info!("configuration read again; nothing changed");
            return Reload::Unchanged;
        }
        for key in &diff.restart_keys {
            warn!(key, "this change waits for a restart: until then the old value is in force");
        }
        if diff.changed.is_empty() {
            return Reload::Unchanged;
        }
        // What waits for a restart keeps its old value here, or the next reading would find no difference and be silent.
        self.config = in_force(&self.config, new);
        (self.apply)(&self.config);
        info!(changes = diff.changed.join("; "), "configuration in force");
        Reload::Applied
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use forebay_core::clock::ManualClock;
    use forebay_fleet::config::load_text;

    fn read(text: &str) -> Result<Loaded, Box<Report>> {
        load_text(Path::new("f.toml"), text, &|_| None)
    }

    fn config(policy: &str, port: u16) -> String {
        format!(
            "[listen]\naddress = \"127.0.0.1:{port}\"\n[[pools]]\nmodel = \"m\"\npolicy = \"{policy}\"\n[[pools.arms]]\n\
             name = \"a\"\nshare = 1\ngpus = 1\nbackends = [{{ url = \"http://127.0.0.1:1\" }}]\n"
        )
    }

    struct Watched {
        watcher: ConfigWatcher,
        applied: Arc<Mutex<Vec<Config>>>,
    }

    impl Watched {
        fn new() -> Watched {
            let applied = Arc::new(Mutex::new(Vec::new()));
            let sink = Arc::clone(&applied);
            let first = read(&config("p2c", 8080)).unwrap();
            let watcher = ConfigWatcher::new(
                first,
                Arc::new(|| read("")),
                Box::new(move |config| sink.lock().unwrap().push(config.clone())),
                Arc::default(),
                (Arc::new(Telemetry::new()), ManualClock::default().clock()),
            );
            Watched { watcher, applied }
        }

        fn take(&mut self, text: &str, asked: bool) {
            self.watcher.take(read(text), asked);
        }

        fn counts(&self) -> [u64; 3] {
            let text = self.watcher.telemetry.render(&[], &[]);
            ["applied", "unchanged", "rejected"].map(|result| {
                let start = format!("forebay_config_reloads_total{{result=\"{result}\"}} ");
                text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
            })
        }
    }

    #[test]
    fn a_changed_file_is_applied_once() {
        let mut watched = Watched::new();
        for _ in 0..3 {
            watched.take(&config("round_robin", 8080), false);
        }
        assert_eq!(watched.applied.lock().unwrap().len(), 1);
        assert_eq!(watched.counts(), [1, 0, 0]);
    }

    #[test]
    fn a_file_that_is_still_written_waits() {
        let mut watched = Watched::new();
        for policy in ["round_robin", "least_inflight", "round_robin"] {
            watched.take(&config(policy, 8080), false);
            watched.take("[listen\n", false);
        }
        assert_eq!((watched.applied.lock().unwrap().len(), watched.counts()), (0, [0, 0, 0]));
        watched.take(&config("round_robin", 8080), true);
        assert_eq!(watched.counts(), [1, 0, 0]);
    }

    #[test]
    fn mistakes_leave_the_last_good_one_and_are_told_once() {
        let mut watched = Watched::new();
        for _ in 0..3 {
            watched.take("[listen\n", false);
        }
        assert_eq!(watched.counts(), [0, 0, 1]);
        for _ in 0..2 {
            watched.take(&config("p2c", 8080), false);
        }
        assert!(watched.applied.lock().unwrap().is_empty());
        assert_eq!(watched.counts(), [0, 1, 1]);
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_was() {
        let mut watched = Watched::new();
        for _ in 0..2 {
            watched.take(&config("round_robin", 9999), false);
        }
        let applied = watched.applied.lock().unwrap();
        assert_eq!(applied[0].listen.address.port(), 8080);
        assert_eq!(applied[0].pools[0].policy.as_str(), "round_robin");
    }

    #[test]
    fn a_signal_is_answered_also_when_nothing_changed() {
        let mut watched = Watched::new();
        watched.take(&config("p2c", 8080), false);
        assert_eq!(watched.counts(), [0, 0, 0]);
        watched.take(&config("p2c", 8080), true);
        assert_eq!(watched.counts(), [0, 1, 0]);
    }

    #[tokio::test]
    async fn a_signal_reads_the_file_at_once() {
        let Watched { mut watcher, applied } = Watched::new();
        watcher.load = Arc::new(|| read(&config("round_robin", 8080)));
        watcher.hup.notify_one();
        let seen = async {
            while applied.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = watcher.run() => unreachable!("it runs until dropped"),
            done = tokio::time::timeout(EVERY / 2, seen) => done.unwrap(),
        }
    }
}
