//! The error of a live split's figures, by its sessions: they are what was assigned to an arm by chance, and requests of one session
//! resemble each other. Sessions are drawn anew with replacement; a session may last longer than a block. It knows nothing of the
//! spread between starts of the servers. Pure: chance comes in.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::measure::{Divisors, attainment, throughput};
use crate::rows::record::Record;
use crate::rows::slo::Slo;
use crate::stats::bootstrap::{Owned, draw};
use crate::stats::estimate::Estimate;

/// The number of times that sessions are drawn anew.
const DRAWS: u32 = 400;
/// Fewer sessions of an arm tell nothing of their spread.
const FEWEST: usize = 5;
/// A quantile is known by the sessions beyond it: with fewer than these it has no interval.
const BEYOND: f64 = 10.0;

/// The session of a request: as the rows tell it, or its conversation.
pub(super) fn of(record: &Record) -> Option<String> {
    record.session.clone().or_else(|| record.conversation.map(|number| format!("conversation {number}")))
}

/// The requests of each session; none where none of them tells its session. A request without one is a session of its own.
pub(super) fn split<'a>(records: &[&'a Record]) -> Option<Vec<Vec<&'a Record>>> {
    let mut named: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    let mut alone = Vec::new();
    for record in records {
        match of(record) {
            Some(session) => named.entry(session).or_default().push(record),
            // Rows without a session beside others with one: each is its own, as the split treats it.
            None => alone.push(vec![*record]),
        }
    }
    (!named.is_empty()).then(|| named.into_values().chain(alone).collect())
}

/// An arm's sessions, to be drawn from again and again.
struct Drawing {
    times: [(Owned, [(Figure, f64); 3]); 4],
    /// Of each session.
    tokens: Vec<f64>,
    succeeded: Vec<f64>,
    met: Option<Vec<f64>>,
    all: Vec<f64>,
    seconds: f64,
    by: Divisors,
}

impl Drawing {
    fn of(sessions: &[Vec<&Record>], seconds: f64, slo: Option<&Slo>, by: Divisors) -> Drawing {
        let owned =
            || (0_u32..).zip(sessions).flat_map(|(owner, records)| records.iter().map(move |one| (owner, *one)));
        let good = || owned().filter(|(_, record)| record.succeeded());
        let ms = |span: std::time::Duration| span.as_secs_f64() * 1e3;
        let spans = |of: fn(&Record) -> Option<std::time::Duration>| -> Owned {
            good().filter_map(|(owner, record)| Some((owner, ms(of(record)?)))).collect()
        };
        // A failed request never had its first token.
        let first = |record: &Record| record.ttft().filter(|_| record.succeeded()).map_or(f64::INFINITY, ms);
        let gaps = good().flat_map(|(owner, record)| record.gaps_us.iter().map(move |gap| (owner, *gap as f64 / 1e3)));
        let sums = |of: &dyn Fn(&Record) -> f64| -> Vec<f64> {
            sessions.iter().map(|records| records.iter().map(|record| of(record)).sum()).collect()
        };
        let one_if = |truth: bool| f64::from(u8::from(truth));
        let middle = |figure| (figure, 0.5);
        let end = |figure| (figure, 0.99);
        Drawing {
            times: [
                (
                    owned().map(|(owner, record)| (owner, first(record))).collect(),
                    [middle(Figure::TtftMedian), (Figure::TtftP95, 0.95), end(Figure::TtftP99)],
                ),
                (spans(Record::tpot), [middle(Figure::TpotMedian), middle(Figure::TpotMedian), end(Figure::TpotP99)]),
                (gaps.collect(), [middle(Figure::ItlMedian), middle(Figure::ItlMedian), end(Figure::ItlP99)]),
                (spans(Record::e2e), [middle(Figure::E2eMedian), middle(Figure::E2eMedian), end(Figure::E2eP99)]),
            ],
            tokens: sums(&|record| if record.succeeded() { record.output_tokens as f64 } else { 0.0 }),
            succeeded: sums(&|record| one_if(record.succeeded())),
            met: slo.map(|slo| sums(&|record| one_if(slo.met(record)))),
            all: sums(&|_| 1.0),
            seconds,
            by,
        }
    }

    /// The figures of sessions drawn so often each, over the same time.
    fn figures(&self, drawn: &[u32]) -> BTreeMap<Figure, f64> {
        let mut figures = BTreeMap::new();
        let mut put = |figure, value: Option<f64>| {
            if let Some(value) = value.filter(|value| *value > 0.0 && value.is_finite()) {
                figures.insert(figure, value);
            }
        };
        let sum = |of: &[f64]| -> f64 { drawn.iter().zip(of).map(|(times, value)| f64::from(*times) * value).sum() };
        throughput(sum(&self.tokens) / self.seconds, self.by, &mut put);
        put(Figure::RequestsPerSecond, Some(sum(&self.succeeded) / self.seconds));
        if let Some(met) = &self.met {
            let all = sum(&self.all);
            attainment(sum(met) / all, all as u64, self.seconds, self.by, &mut put);
        }
        for (values, wanted) in &self.times {
            for (figure, at) in wanted {
                put(*figure, values.quantile(*at, drawn));
            }
        }
        figures
    }
}

/// The share of values beyond a figure that is a quantile.
fn beyond(figure: Figure) -> f64 {
    match figure {
        Figure::TtftP95 => 0.05,
        figure if figure.is_p99() => 0.01,
        _ => 1.0,
    }
}

/// The evidence of a pair's sessions.
pub(super) struct BySession {
    /// Sessions of the baseline, and of the arm.
    pub(super) counts: (u32, u32),
    /// Figure by figure the values of both, and the logarithm of their ratio.
    pub(super) figures: BTreeMap<Figure, ((f64, f64), Estimate)>,
}

/// The ratios of two arms' figures with their errors by session; none where sessions are not told, or too few.
pub(super) fn compared(
    sides: [(&[&Record], Divisors); 2],
    seconds: f64,
    slo: Option<&Slo>,
    rng: &mut fastrand::Rng,
) -> Option<BySession> {
    let [a, b] = sides.map(|(records, by)| split(records).map(|sessions| (sessions, by)));
    let (a, b) = (a?, b?);
    let counts = (a.0.len(), b.0.len());
    // The arm with fewer sessions sets how well the spread is known.
    let fewest = counts.0.min(counts.1);
    if fewest < FEWEST || seconds <= 0.0 {
        return None;
    }
    let drawings = [a, b].map(|(sessions, by)| Drawing::of(&sessions, seconds, slo, by));
    let whole = [0, 1].map(|side: usize| drawings[side].figures(&vec![1; [counts.0, counts.1][side]]));
    let mut drawn: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
    for _ in 0..DRAWS {
        let [a, b] = [0, 1].map(|side: usize| drawings[side].figures(&draw([counts.0, counts.1][side], rng)));
        // The ratio of each draw, not that of the draws' means: a ratio's spread is not made of its parts'.
        for (figure, b) in b {
            if let Some(a) = a.get(&figure) {
                drawn.entry(figure).or_default().push((b / a).ln());
            }
        }
    }
    let mut figures = BTreeMap::new();
    // A quantile is drawn again and again from the same few values beyond it. With fewer than ten the bootstrap's spread is
    // too small.
    let known = |figure: &Figure| fewest as f64 * beyond(*figure) >= BEYOND;
    for (figure, logs) in drawn.into_iter().filter(|(figure, logs)| known(figure) && logs.len() as u32 == DRAWS) {
        let (Some(a), Some(b)) = (whole[0].get(&figure), whole[1].get(&figure)) else { continue };
        let mean = logs.iter().sum::<f64>() / f64::from(DRAWS);
        let squares = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>();
        let se = (squares / f64::from(DRAWS - 1)).sqrt();
        // The spread of so few sessions is itself not known well.
        let df = (fewest - 1) as f64;
        // The ratio as measured, and the spread of the draws: their own mean carries the bias of a quantile a second time.
        figures.insert(figure, ((*a, *b), Estimate { mean: (b / a).ln(), se, df }));
    }
    Some(BySession { counts: (counts.0 as u32, counts.1 as u32), figures })
}
