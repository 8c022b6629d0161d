//! What paced streams feel of other load: large bodies, slow readers, and of Forebay scrapes of its metrics and reloads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::task::JoinSet;

use super::super::Fallible;
use super::super::client::{Events, open_streams};
use super::super::contenders::{Contender, Field, Setup};
use super::super::disturb::{Disturbance, Kind};
use super::super::figures::quantile;
use super::super::options::{Name, Options};
use super::super::polls::{Longest, Told};
use super::super::rhythm::Rhythm;
use super::super::upstream::Mode;
use super::{Against, Figure, Target, difference, ratio, streams};

/// Streams, and their events a second in all: one every 10 ms each.
const STREAMS: usize = 64;
const RATE: Rhythm = Rhythm::Alone(6_400);
/// Windows that each disturbance lasts.
const WINDOWS: u32 = 3;
/// Time after a start, and after a disturbance, before the next measurement.
const SETTLE: Duration = Duration::from_millis(500);
/// The time between two reloads.
const BETWEEN_RELOADS: Duration = Duration::from_secs(1);
/// The most that a thread that serves requests may be away from its loop, in milliseconds.
const AWAY: f64 = 2.0;

/// The figures, in the order of [`measure`].
pub(super) fn figures(options: &Options) -> Vec<Figure> {
    let backends = options.most_backends();
    let bodies = format!("bodies of {} MB, one at a time", options.body);
    let readers = format!("{} slow readers", options.readers);
    let (scrapes, reloads) =
        (format!("a scrape each second, {backends} backends"), format!("a reload each second, {backends} backends"));
    let added = |what: &str| format!("gap between events, P99, added by {what}, ms");
    let like_nginx = |what: &str| Figure::new(added(what), Against::Difference, Some(Target::ToNginx(0.0)));
    let mut all = vec![
        difference("gap between events, P99, undisturbed, ms"),
        like_nginx(&bodies),
        like_nginx(&readers),
        ratio(format!("{bodies}: number in a second (more is better)")),
        difference(added(&scrapes)),
        difference(added(&reloads)),
    ];
    let phases = ["undisturbed", &bodies, &readers, &format!("undisturbed, {backends} backends"), &scrapes, &reloads];
    for (at, phase) in phases.into_iter().enumerate() {
        // What is not disturbed has no target: it shows what the machine does by itself.
        let target = (at % 3 > 0).then_some(Target::Itself(AWAY));
        all.push(Figure::new(
            format!("longest poll on a thread of requests, {phase}, ms"),
            Against::Difference,
            target,
        ));
        all.push(difference(format!("longest poll on a thread of the admin API or the tasks, {phase}, ms")));
    }
    all
}

/// What was seen in one time.
#[derive(Clone, Copy)]
struct Seen {
    /// P99 of the gaps between events, in milliseconds.
    gap: f64,
    longest: Longest,
}

/// The figures of one round.
pub(super) async fn measure(field: &Field, name: Name, options: &Options) -> Fallible<Vec<Option<f64>>> {
    if options.tls {
        return Err("what disturbs does not speak TLS".into());
    }
    let window = options.window() * WINDOWS;
    let setup = Setup { others: &field.others, ..field.setup() };
    let contender = field.start(name, &setup).await?;
    let streams = Streams::open(&contender).await?;
    let quiet = streams.during(window).await?;
    let (bodies, sent) =
        streams.disturbed(Kind::Bodies(options.body as usize * 1_000_000), contender.at.port, window).await?;
    let (readers, _) = streams.disturbed(Kind::Readers(options.readers as usize), contender.at.port, window).await?;
    streams::end(streams.readers).await;
    let mut seen = vec![quiet, bodies, readers];
    let mut all = vec![Some(quiet.gap), Some(bodies.gap - quiet.gap), Some(readers.gap - quiet.gap)];
    all.push(Some(sent as f64 / window.as_secs_f64()));
    if let Name::Forebay | Name::Base = name {
        let upstreams = &field.upstreams[..options.most_backends() as usize];
        let contender = field.start(name, &Setup { upstreams, ..setup }).await?;
        let admin = contender.admin.as_ref().ok_or("no admin API")?.port;
        let streams = Streams::open(&contender).await?;
        let quiet = streams.during(window).await?;
        let (scrapes, _) = streams.disturbed(Kind::Scrapes, admin, window).await?;
        let reloads = streams.reloaded(window).await?;
        streams::end(streams.readers).await;
        all.extend([Some(scrapes.gap - quiet.gap), Some(reloads.gap - quiet.gap)]);
        seen.extend([quiet, scrapes, reloads]);
    } else {
        all.extend([None, None]);
    }
    if name == Name::Forebay && bodies.longest.requests.is_none() {
        println!("  note: this forebay does not count polls: build it with RUSTFLAGS=\"--cfg tokio_unstable\"");
    }
    all.extend(seen.into_iter().flat_map(|seen| [seen.longest.requests, seen.longest.others]));
    Ok(all)
}

/// Gaps between events, in seconds, as far as they are measured.
#[derive(Default)]
struct Gaps {
    measuring: bool,
    seen: Vec<f64>,
}

/// Paced streams that are read as fast as their events come.
struct Streams<'a> {
    contender: &'a Contender,
    gaps: Arc<Mutex<Gaps>>,
    readers: JoinSet<()>,
}

impl Streams<'_> {
    async fn open(contender: &Contender) -> Fallible<Streams<'_>> {
        let gaps = Arc::new(Mutex::new(Gaps::default()));
        let mut readers = JoinSet::new();
        for (connection, mut body) in open_streams(&contender.at, Mode::Shared(RATE), STREAMS).await? {
            let gaps = Arc::clone(&gaps);
            readers.spawn(async move {
                let (mut events, mut last) = (Events::default(), None::<Instant>);
                while let Some(Ok(frame)) = body.frame().await {
                    let (Ok(data), now) = (frame.into_data(), Instant::now()) else { continue };
                    let mut gaps = gaps.lock().unwrap_or_else(PoisonError::into_inner);
                    events.read(&data, |_| {
                        if let (true, Some(last)) = (gaps.measuring, last) {
                            gaps.seen.push((now - last).as_secs_f64());
                        }
                        last = Some(now);
                    });
                }
                drop(connection);
            });
        }
        tokio::time::sleep(SETTLE).await;
        Ok(Streams { contender, gaps, readers })
    }

    fn set_measuring(&self, measuring: bool) -> Vec<f64> {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        gaps.measuring = measuring;
        std::mem::take(&mut gaps.seen)
    }

    /// Looks on for so long.
    async fn during(&self, window: Duration) -> Fallible<Seen> {
        let before = Told::by(self.contender).await?;
        self.set_measuring(true);
        tokio::time::sleep(window).await;
        let mut gaps = self.set_measuring(false);
        let longest = Told::by(self.contender).await?.longest_since(&before);
        if self.readers.len() < STREAMS || gaps.len() < STREAMS {
            return Err("paced streams ended".into());
        }
        let due = f64::from(RATE.rate()) * window.as_secs_f64();
        if (gaps.len() as f64) < 0.8 * due {
            println!(
                "  note: {}: {} events came of {due:.0} that were due; the machine is busy",
                self.contender.name,
                gaps.len()
            );
        }
        let gap = quantile(&mut gaps, 0.99).ok_or("no event came")? * 1e3;
        Ok(Seen { gap, longest })
    }

    /// Looks on while something disturbs at a port. Returns also how often it did.
    async fn disturbed(&self, kind: Kind, port: u16, window: Duration) -> Fallible<(Seen, u64)> {
        let mut disturbance = Disturbance::start(kind, port).await?;
        let before = disturbance.done();
        let seen = self.during(window).await?;
        disturbance.goes_on()?;
        let done = disturbance.done() - before;
        drop(disturbance);
        // A slow reader's stream may go on for a moment.
        tokio::time::sleep(SETTLE).await;
        Ok((seen, done))
    }

    /// Looks on while the configuration changes.
    async fn reloaded(&self, window: Duration) -> Fallible<Seen> {
        let before = Told::by(self.contender).await?.reloads;
        let reloading = async {
            let (began, mut reloads) = (Instant::now(), 0.0);
            while began.elapsed() + BETWEEN_RELOADS <= window {
                tokio::time::sleep(BETWEEN_RELOADS / 2).await;
                self.contender.reload()?;
                reloads += 1.0;
                tokio::time::sleep(BETWEEN_RELOADS / 2).await;
            }
            Fallible::Ok(reloads)
        };
        let (seen, reloads) = tokio::try_join!(self.during(window), reloading)?;
        let applied = Told::by(self.contender).await?.reloads - before;
        if applied < reloads {
            return Err(format!("{reloads} changes of the configuration, and {applied} were put into force").into());
        }
        Ok(seen)
    }
}
