//! What is known of an arm under one load, gathered from rows or from a table. Pure.

use serde::Serialize;

use crate::rows::kept_up::{KeptUp, kept_up};
use crate::rows::record::Record;
use crate::rows::row_file::{Offered, RunHead, RunRows, Sample};
use crate::rows::summary::{Latency, Summary};

use super::costs::Costs;
use super::seen::{self, Seen};
use super::servers::Servers;
use super::shares::{self, Shares};
use super::what_if::{Known, WhatIf, what_if};

/// A lag below the first of these shares of TPOT is harmless, above the second it is what was measured.
const LAG_OF_TPOT: (f64, f64) = (0.5, 2.0);

/// The load generator is slow where its lag is this share of the time that answers were unread.
const LAG_OF_UNREAD: f64 = 0.4;
/// And where this share of the open requests was neither at the servers nor on the network.
const UNREAD: f64 = 0.1;

/// The evidence on an arm under one load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// The arm's name.
    pub arm: String,
    /// True if its servers were simulated.
    pub simulated: bool,
    /// The way in which requests were offered; none: not known.
    pub offered: Option<Offered>,
    /// The figures of the table.
    pub figures: Summary,
    /// Requests that the client kept open at once, at most; none: no limit.
    pub gate: Option<u32>,
    /// The time that a request was open after the servers were done with it, the network's apart, in milliseconds; none where
    /// nobody looked.
    pub unread_ms: Option<f64>,
    /// Its servers.
    pub replicas: Option<u32>,
    /// `--max-num-seqs` of each server.
    pub max_num_seqs: Option<u32>,
    /// Tokens that the KV blocks of one server hold.
    pub kv_tokens: Option<f64>,
    /// Tokens of an answer at most, where the load fixed them.
    pub output_len: Option<u32>,
    /// The delay with which the load generator noted what had come, at the 99th percentile, in milliseconds.
    pub lag_p99_ms: Option<f64>,
    /// The finding on whether it kept up with what was offered; none of a table, and where that is not known.
    pub kept_up: Option<KeptUp>,
    /// The figures that requests tell one by one; none of a table.
    pub seen: Option<RequestFigures>,
    /// The figures that looks at the servers tell; none where nobody looked.
    pub servers: Option<Servers>,
    /// The gains from twice of one thing, by a replay of the run; none where nobody looked at the servers.
    pub what_if: Option<WhatIf>,
}

/// The figures that requests tell one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RequestFigures {
    /// From the first sending to the last, in seconds.
    pub arrivals_s: f64,
    /// Requests open on average over the run.
    pub open: f64,
    /// Sequences that decoded on average over the run: Little's law with the means.
    pub decoding: f64,
    /// The shares of the time, where the answers' tokens tell.
    pub shares: Option<Shares>,
}

impl Evidence {
    /// Returns what a run tells of an arm; of a run with one arm, `arm` none. Samples are the arm's where their server answered one
    /// of its requests, or where no answer told its server.
    #[must_use]
    pub fn of(run: &RunRows, arm: Option<&str>) -> Evidence {
        let assigned = |record: &&Record| arm.is_none() || record.assigned.as_deref().or(record.arm.as_deref()) == arm;
        let records: Vec<&Record> = run.records.iter().filter(assigned).collect();
        let told: Vec<&str> = records.iter().filter_map(|record| record.backend.as_deref()).collect();
        let samples: Vec<&Sample> = run
            .samples
            .iter()
            .filter(|sample| arm.is_none() || told.is_empty() || told.contains(&sample.backend.as_str()))
            .collect();
        let figures = Summary::of(records.iter().copied());
        let head = run.head.as_ref();
        let max_num_seqs = head.and_then(|head| head.max_num_seqs);
        let each = |tokens: u64| tokens as f64 / figures.requests.max(1) as f64;
        let servers = Servers::of(&samples, max_num_seqs, each(figures.input_tokens), each(figures.output_tokens));
        let took_us = figures.duration_s * 1e6;
        let seen = Seen::of(&records, &samples, took_us);
        let mut spans = seen::spans(&records, &samples, seen.round_trip_us);
        let mut fits = Costs::fit(&spans);
        // Without counters of the servers, the gaps between tokens tell when steps were. They tell less: not what was computed
        // of prompts.
        if fits.is_empty() {
            spans = shares::spans(&records);
            fits = Costs::fit(&spans);
        }
        let offered = head.map(|head| head.load.offered);
        let lag_us = run.end.map(|end| end.lag_p99_us as f64);
        let gate = head.and_then(|head| gate(head, arm.is_some(), &records, took_us));
        let of_requests = RequestFigures::of(&records, &figures, fits.first().map(|costs| Shares::of(&spans, costs)));
        let name = arm.or_else(|| head.and_then(|head| head.arm.as_deref()));
        Evidence {
            arm: name.unwrap_or("the arm").to_owned(),
            simulated: head.is_some_and(|head| head.simulated),
            kept_up: kept_up(offered, &records),
            // The rate of conversations is not that of their requests, which wait for answers.
            offered: offered.filter(|_| records.iter().all(|one| one.turn.is_none())),
            figures,
            gate,
            unread_ms: servers.map(|_| seen.unread_us / 1e3),
            replicas: head.and_then(|head| head.replicas).or(servers.as_ref().map(|servers| servers.count)),
            max_num_seqs,
            kv_tokens: servers.as_ref().and_then(|servers| servers.kv_tokens),
            output_len: head.and_then(|head| head.load.output_len),
            lag_p99_ms: lag_us.map(|lag| lag / 1e3),
            seen: of_requests,
            what_if: servers.as_ref().and_then(|servers| {
                let known = Known {
                    seen: &seen,
                    fits: &fits,
                    offered,
                    gate,
                    // Both: unread answers may be the server's HTTP side, and a generator may lag without anything waiting for
                    // it.
                    slow_client: seen.unread >= UNREAD
                        && lag_us.is_some_and(|lag| lag >= LAG_OF_UNREAD * seen.unread_us),
                    cap: max_num_seqs.map(f64::from),
                    servers,
                    decoding: of_requests.map_or(0.0, |seen| seen.decoding),
                    took_us,
                };
                what_if(&records, &known)
            }),
            servers,
        }
    }

    /// Returns what a table of the fourteen rows tells, in their order ([`crate::rows::table::benchmark_rows`]).
    #[must_use]
    pub fn of_table(arm: &str, offered: Option<Offered>, rows: &[f64; 14]) -> Evidence {
        let latency = |p50: f64, p99: f64| Latency { p50: Some(p50), p99: Some(p99), ..Latency::default() };
        Evidence {
            arm: arm.to_owned(),
            offered,
            figures: Summary {
                requests: rows[0] as u64,
                duration_s: rows[1],
                input_tokens: rows[2] as u64,
                output_tokens: rows[3] as u64,
                ttft_ms: latency(rows[8], rows[9]),
                tpot_ms: latency(rows[10], rows[11]),
                ..Summary::default()
            },
            ..Evidence::default()
        }
    }

    /// Returns the evidence without what only rows and looks at the servers tell; the load generator's lag stays.
    #[must_use]
    pub fn table_alone(&self) -> Evidence {
        let Summary { requests, duration_s, input_tokens, output_tokens, ttft_ms, tpot_ms, .. } = self.figures;
        let two = |of: Latency| Latency { p50: of.p50, p99: of.p99, ..Latency::default() };
        Evidence {
            arm: self.arm.clone(),
            simulated: self.simulated,
            offered: self.offered,
            figures: Summary {
                requests,
                duration_s,
                input_tokens,
                output_tokens,
                ttft_ms: two(ttft_ms),
                tpot_ms: two(tpot_ms),
                ..Summary::default()
            },
            lag_p99_ms: self.lag_p99_ms,
            ..Evidence::default()
        }
    }

    /// Sequences that decoded at once, by Little's law: output tokens/s × TPOT, the mean where it is known, else the median.
    #[must_use]
    pub fn decoding(&self) -> Option<f64> {
        let tpot = self.figures.tpot_ms;
        Some(self.figures.output_tokens_per_second() * tpot.mean.or(tpot.p50)? / 1e3)
    }

    /// Returns whether the load generator kept up: its lag is short beside the time per token. None: not known.
    #[must_use]
    pub fn client_kept_up(&self) -> Option<bool> {
        let lag = self.lag_p99_ms? / self.tpot_ms()?;
        if lag < LAG_OF_TPOT.0 { Some(true) } else { (lag > LAG_OF_TPOT.1).then_some(false) }
    }

    /// The time per token of a typical request.
    pub(super) fn tpot_ms(&self) -> Option<f64> {
        self.figures.tpot_ms.p50.or(self.figures.tpot_ms.mean)
    }

    /// A TTFT as a share of the run.
    pub(super) fn share_of_run(&self, ms: Option<f64>) -> Option<f64> {
        let run = self.figures.duration_s * 1e3;
        ms.filter(|_| run > 0.0).map(|ms| ms / run)
    }

    /// Tokens of a prompt and of an answer, the means.
    pub(super) fn lengths(&self) -> (f64, f64) {
        let requests = self.figures.requests.max(1) as f64;
        (self.figures.input_tokens as f64 / requests, self.figures.output_tokens as f64 / requests)
    }
}

impl RequestFigures {
    fn of(records: &[&Record], figures: &Summary, shares: Option<Shares>) -> Option<RequestFigures> {
        let first = records.iter().map(|record| record.sent_us).min()?;
        let last = records.iter().map(|record| record.sent_us).max()?;
        let run_us = figures.duration_s * 1e6;
        let open_us: f64 = records.iter().map(|record| record.end_us as f64).sum();
        let decoding = |record: &&Record| Some(record.e2e()? - record.ttft()?);
        let decoding_us: f64 = records.iter().filter_map(decoding).map(|span| span.as_secs_f64() * 1e6).sum();
        Some(RequestFigures {
            arrivals_s: (last - first) as f64 / 1e6,
            open: open_us / run_us.max(1.0),
            decoding: decoding_us / run_us.max(1.0),
            shares,
        })
    }
}

/// The requests that the client kept open at once, at most. An arm beside another one has a part of them that nobody set.
fn gate(head: &RunHead, a_part: bool, records: &[&Record], took_us: f64) -> Option<u32> {
    let all = match head.load.offered {
        Offered::Concurrency(most) => Some(most),
        _ => head.load.max_concurrency,
    }?;
    let open: f64 = records.iter().map(|record| record.end_us as f64).sum::<f64>() / took_us.max(1.0);
    Some(if a_part { (open.round() as u32).clamp(1, all) } else { all })
}
