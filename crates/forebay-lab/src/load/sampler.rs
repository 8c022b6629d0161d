//! Looks at the servers during a run: their `/metrics`, once a second, on a thread and a runtime of its own, so that no look
//! delays a request here. It does delay one that comes to a vLLM at that moment, which writes its metrics in the loop that
//! answers requests: by some 8 ms on a slow core (`forebay bench` at 20 requests/s, every twentieth). A look that fails is left
//! out; it is never a zero.

use std::hash::{Hash, Hasher};
use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::rows::row_file::Sample;
use forebay_core::clock::{Clock, Time};
use forebay_core::vllm_metrics;
use forebay_fleet::probe::ProbeClient;

/// Between two looks at one server.
const EVERY: Duration = Duration::from_secs(1);
/// A server that works hard answers late, but this late it says nothing of the moment at which it was asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most bytes of a metrics text, as the proxy's own scraper has it.
pub(crate) const MAX_TEXT: usize = 8 << 20;

/// A server to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scraped {
    /// Scheme, host and port.
    pub base: String,
    /// The name that its rows call it by: host and port, as Forebay calls it too.
    pub name: String,
}

impl Scraped {
    /// The server at a base URL.
    #[must_use]
    pub fn of(base: &str) -> Scraped {
        let name = base.split_once("://").map_or(base, |(_, rest)| rest);
        Scraped { base: base.to_owned(), name: name.to_owned() }
    }

    /// Returns whether it has metrics as a vLLM has them.
    pub async fn answers(&self) -> bool {
        look(&ProbeClient::new(PATIENCE), self).await.is_some()
    }
}

/// A number for this start of these servers, of the times at which their processes began: equal for the same processes, another
/// once one of them was started anew. None where a server does not say it, or there is none.
pub async fn start_of(servers: &[Scraped]) -> Option<u32> {
    let client = ProbeClient::new(PATIENCE);
    let mut began: Vec<(String, u64)> = Vec::new();
    for server in servers {
        let uri = format!("{}/metrics", server.base).parse().ok()?;
        let body = client.get_ok(uri, None, PATIENCE, MAX_TEXT).await.ok()?;
        // One server that does not say it makes the whole start unknown: half of a start is no unit of evidence.
        let seconds = process_start(std::str::from_utf8(&body).ok()?)?;
        // Seconds: the same process says the same, to the last digit.
        began.push((server.name.clone(), seconds.to_bits()));
    }
    number_of(began)
}

/// `process_start_time_seconds`, as Prometheus' client libraries have it.
fn process_start(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("process_start_time_seconds"))?;
    // Labels, if any, are of one process all the same.
    line.rsplit(' ').next()?.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0)
}

/// One number of all of them, whatever their order.
fn number_of(mut began: Vec<(String, u64)>) -> Option<u32> {
    began.sort();
    began.dedup();
    (!began.is_empty()).then(|| {
        let mut hasher = std::hash::DefaultHasher::new();
        began.hash(&mut hasher);
        hasher.finish() as u32
    })
}

/// Looks until it is told to end.
pub struct Sampler {
    stop: oneshot::Sender<()>,
    seen: oneshot::Receiver<Vec<Sample>>,
}

impl Sampler {
    /// Begins to look, at once and then every second; times count from `begin`.
    ///
    /// # Errors
    /// The system has no thread or no runtime for it.
    pub fn start(servers: Vec<Scraped>, clock: Clock, begin: Time) -> io::Result<Sampler> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (tell, seen) = oneshot::channel();
        let work = move || {
            let samples = runtime.block_on(sample(servers, clock, begin, stopped));
            // Nobody waits for them any more if the run was dropped.
            drop(tell.send(samples));
        };
        std::thread::Builder::new().name("sampler".to_owned()).spawn(work)?;
        Ok(Sampler { stop, seen })
    }

    /// Takes a last look and gives all, oldest first.
    pub async fn end(self) -> Vec<Sample> {
        drop(self.stop);
        self.seen.await.unwrap_or_default()
    }
}

async fn sample(servers: Vec<Scraped>, clock: Clock, begin: Time, stopped: oneshot::Receiver<()>) -> Vec<Sample> {
    let client = ProbeClient::new(PATIENCE);
    let (halt, halted) = tokio::sync::watch::channel(false);
    let mut looking = JoinSet::new();
    for server in servers {
        let (client, clock, mut halted) = (client.clone(), clock.clone(), halted.clone());
        looking.spawn(async move {
            let mut seen = Vec::new();
            let mut every = tokio::time::interval(EVERY);
            // After a slow answer the next look waits its second: a burst of looks would cost the server what they are to
            // measure.
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut last = false;
            while !last {
                tokio::select! {
                    _ = every.tick() => {}
                    _ = halted.changed() => last = true,
                }
                // The moment of asking: vLLM writes its figures when it gets the request, however long the answer then takes.
                let asked = clock.now().since(begin);
                if let Some(sample) = look(&client, &server).await {
                    seen.push(Sample { at_us: u64::try_from(asked.as_micros()).unwrap_or(u64::MAX), ..sample });
                }
            }
            seen
        });
    }
    // An error is an end as well: whoever asked for samples is gone.
    let _ = stopped.await;
    let _ = halt.send(true);
    let mut samples = looking.join_all().await.concat();
    // Servers are looked at side by side, and whoever reads the rows takes differences in time.
    samples.sort_by_key(|sample| sample.at_us);
    samples
}

async fn look(client: &ProbeClient, server: &Scraped) -> Option<Sample> {
    let uri = format!("{}/metrics", server.base).parse().ok()?;
    let body = client.get_ok(uri, None, PATIENCE, MAX_TEXT).await.ok()?;
    read(std::str::from_utf8(&body).ok()?, &server.name)
}

/// Reads a server's metrics; none if they are not vLLM's.
fn read(text: &str, name: &str) -> Option<Sample> {
    let seen = vllm_metrics::parse(text).ok()?;
    Some(Sample {
        backend: name.to_owned(),
        at_us: 0,
        running: seen.running,
        waiting: seen.waiting,
        kv_usage: seen.kv_usage,
        preemptions: seen.preemptions,
        prefix_queries: seen.prefix_queries,
        prefix_hits: seen.prefix_hits,
        prompt_tokens: vllm_metrics::figure(text, "prompt_tokens_total"),
        generation_tokens: seen.generation_tokens,
        steps: seen.steps,
        kv_tokens: seen.kv_capacity_tokens.map(|tokens| tokens as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_text_fills_every_figure() {
        let text = include_str!("../../../../tests/fixtures/vllm-0.32.0/metrics/under-load-4-running-12-waiting.txt");
        let sample = read(text, "a:1").unwrap();
        assert_eq!((sample.backend.as_str(), sample.running, sample.waiting), ("a:1", Some(4.0), Some(12.0)));
        assert_eq!(sample.kv_tokens, Some(65_536.0));
        let rest = [
            sample.kv_usage,
            sample.preemptions,
            sample.prefix_queries,
            sample.prefix_hits,
            sample.prompt_tokens,
            sample.generation_tokens,
            sample.steps,
        ];
        assert!(rest.iter().all(Option::is_some), "{sample:?}");
        assert_eq!(read("go_goroutines 7\n", "a:1"), None);
    }

    #[test]
    fn a_start_is_that_of_all_servers() {
        let text = include_str!("../../../../tests/fixtures/vllm-0.32.0/metrics/idle-fresh.txt");
        let began = process_start(text).unwrap();
        assert!(began > 1.7e9, "{began}");
        assert_eq!(process_start("vllm:num_requests_running 0\n"), None);
        let server = |name: &str, began: f64| (name.to_owned(), began.to_bits());
        let number = |servers: &[(String, u64)]| number_of(servers.to_vec());
        let both = number(&[server("a:1", 1.0), server("b:1", 2.0)]);
        assert_eq!(both, number(&[server("b:1", 2.0), server("a:1", 1.0), server("a:1", 1.0)]));
        assert_ne!(both, number(&[server("a:1", 1.0), server("b:1", 2.5)]), "one was started anew");
        assert_eq!(number(&[]), None);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_gives_no_rows_and_ends_the_run_no_later() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let clock = Clock::system();
        let sampler = Sampler::start(vec![Scraped::of(&format!("http://{gone}"))], clock.clone(), clock.now()).unwrap();
        assert_eq!(sampler.end().await, []);
    }
}
