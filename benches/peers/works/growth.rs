//! How costs grow: memory with the number of open streams, the CPU time of an event with the number of streams that share a rate,
//! and that of a unary request with the number of backends.

use std::time::{Duration, Instant};

use super::super::Fallible;
use super::super::contenders::{Contender, Field, Setup};
use super::super::options::{Name, Options};
use super::super::rhythm::Rhythm;
use super::super::upstream::Mode;
use super::{Figure, Target, difference, limited, memory, ratio, streams, unary};

/// Events a second of all streams.
const RATE: Rhythm = Rhythm::Alone(6_400);
/// The most that memory of a stream, and CPU time of a request, may grow from the least size to a larger one.
const MOST: f64 = 1.1;
/// The most that CPU time of an event may grow, as a ratio to how nginx's does.
const MOST_TO_NGINX: f64 = 1.15;
/// The time in which each probe and each scrape comes at least once.
const PROBES: Duration = Duration::from_secs(2);
/// Time after a start in which backends are found out about.
const SETTLE: Duration = Duration::from_secs(1);

/// The figures, in the order of [`measure`].
pub(super) fn figures(options: &Options) -> Vec<Figure> {
    let mut all = Vec::new();
    let held = memory_sizes(options);
    all.extend(held.iter().map(|streams| ratio(format!("memory for each of {streams} open streams, KiB"))));
    all.extend(growth(held, "streams", "memory for an open stream", Target::Itself(MOST)));
    all.extend(options.streams.iter().map(|streams| ratio(format!("CPU time for an event of {streams} streams, µs"))));
    all.extend(growth(&options.streams, "streams", "CPU time for an event", Target::ToNginx(MOST_TO_NGINX)));
    all.extend(
        options
            .backends
            .iter()
            .map(|backends| ratio(format!("CPU time for a request before {backends}, less probes and scrapes, µs"))),
    );
    all.extend(growth(&options.backends, "backends", "CPU time for a request", Target::Itself(MOST)));
    let probes = |backends| difference(format!("CPU time for probes and scrapes of {backends}, ms in a second"));
    all.extend(options.backends.iter().map(probes));
    all
}

/// The figures of how something grows from the first size.
fn growth(sizes: &[u32], of: &str, what: &str, target: Target) -> Vec<Figure> {
    let Some((first, others)) = sizes.split_first() else { return Vec::new() };
    others.iter().map(|size| limited(format!("{what}, {size} {of} ÷ {first}"), target)).collect()
}

/// The sizes of memory: all but the first, whose streams are too few to show in that of a process.
fn memory_sizes(options: &Options) -> &[u32] {
    options.streams.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(&options.streams)
}

/// How something grew from the first size.
fn ratios(values: &[f64]) -> impl Iterator<Item = f64> {
    values.iter().skip(1).map(|value| value / values[0])
}

/// The figures of one round.
pub(super) async fn measure(field: &Field, name: Name, options: &Options) -> Fallible<Vec<f64>> {
    let window = options.window();
    let (mut memory, mut events, mut requests, mut idle) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for streams in memory_sizes(options) {
        let contender = field.start(name, &field.setup()).await?;
        memory.push(memory::open_streams(&contender, *streams as usize).await?);
    }
    let contender = field.start(name, &field.setup()).await?;
    for streams in &options.streams {
        let load = (Mode::Shared(RATE), *streams as usize);
        events.push(streams::event_cost(&contender, load, f64::from(RATE.rate()), window).await?.cpu);
    }
    drop(contender);
    for backends in &options.backends {
        let upstreams = &field.upstreams[..*backends as usize];
        let contender = field.start(name, &Setup { upstreams, ..field.setup() }).await?;
        tokio::time::sleep(SETTLE).await;
        let for_probes = idle_share(&contender, window).await?;
        let loaded = unary::small_loop(&contender, window).await?;
        let probes = for_probes * loaded.took.as_secs_f64();
        requests.push((loaded.cpu.as_secs_f64() - probes) * 1e6 / loaded.requests);
        idle.push(for_probes * 1e3);
    }
    let mut all = Vec::new();
    for values in [&memory, &events, &requests] {
        all.extend(values);
        all.extend(ratios(values));
    }
    all.extend(idle);
    Ok(all)
}

/// The share of a core that a contender takes without a request.
async fn idle_share(contender: &Contender, window: Duration) -> Fallible<f64> {
    let (before, started) = (contender.cpu()?, Instant::now());
    tokio::time::sleep(window.max(PROBES)).await;
    Ok((contender.cpu()? - before).as_secs_f64() / started.elapsed().as_secs_f64())
}
