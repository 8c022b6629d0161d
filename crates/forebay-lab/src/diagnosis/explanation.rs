//! A finding in words, with its figures. Pure.

use crate::rows::row_file::Offered;

use super::cause::{Cause, Diagnosis};
use super::evidence::Evidence;
use super::finding::{Found, drained, unread};
use super::servers::Servers;
use super::table_diagnosis::{EVEN, MOST_LATE, Signs, UNEVEN};

/// A whole number.
pub(super) fn count(value: f64) -> String {
    format!("{value:.0}")
}

/// A ratio, as `1.38 ×`.
pub(super) fn times(ratio: f64) -> String {
    format!("{ratio:.2} ×")
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn listed(causes: &[Cause]) -> String {
    let names: Vec<&str> = causes.iter().map(|cause| cause.name()).collect();
    match names.as_slice() {
        [] => "anything".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

pub(super) fn diagnosis(evidence: &Evidence, found: &Found) -> Diagnosis {
    Diagnosis {
        cause: found.cause,
        candidates: found.candidates.clone(),
        sentence: sentence(evidence, found.cause, &found.candidates),
        evidence: lines(evidence, found),
        would_tell: would_tell(evidence, found),
    }
}

/// Returns whether all that is left is a kind of room.
fn only_room(candidates: &[Cause]) -> bool {
    !candidates.is_empty() && candidates.iter().all(|cause| matches!(cause, Cause::KvRoom | Cause::CapOnRunning))
}

/// The condition of a cause that a slow client would void.
const PROVISO: &str = "That holds if the load generator kept up, which is not known here.";

fn sentence(evidence: &Evidence, cause: Cause, candidates: &[Cause]) -> String {
    let name = &evidence.arm;
    match cause {
        Cause::KvRoom | Cause::CapOnRunning => room(evidence, cause),
        Cause::StepTime => format!(
            "{name} is limited by step time: little waited for room, {} of {} sequences decoded at once, and each token \
             took {} ms.",
            decoding(evidence),
            evidence.figures.requests,
            evidence.tpot_ms().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
        ),
        Cause::Prefill => {
            let (prompt, answer) = evidence.lengths();
            format!(
                "{name} is limited by prefill: {} prompt tokens a request beside {} of answer, {} sequences decoding at once.",
                count(prompt),
                count(answer),
                decoding(evidence),
            )
        }
        Cause::Arrival => format!(
            "{name} kept up with what was offered ({} requests/s): {}, so that its throughput is the load's and says nothing of \
             the arm.",
            rate(evidence),
            kept_up(evidence),
        ),
        Cause::SlowClient => {
            let how =
                evidence.seen.as_ref().zip(evidence.servers.as_ref()).map_or_else(String::new, |(seen, servers)| {
                    let at_servers = count(servers.running + servers.waiting);
                    format!(" {} requests were open there on average, {at_servers} at the servers;", count(seen.open))
                });
            format!("{name} is not what limited this run, the load generator is:{how} these figures are not the arm's.")
        }
        Cause::Undecided => undecided(evidence, candidates),
    }
}

/// Says how one sees that it kept up.
fn kept_up(evidence: &Evidence) -> String {
    match &evidence.kept_up {
        Some(found) => format!("answers came at {:.2} of that rate, and TTFT did not grow", found.answered.min(1.0)),
        None => {
            format!(
                "its work went on for {} of the run after the last arrival",
                percent(drained(evidence).unwrap_or(0.0))
            )
        }
    }
}

fn decoding(evidence: &Evidence) -> String {
    evidence.decoding().map_or_else(|| "an unknown number".to_owned(), count)
}

fn room(evidence: &Evidence, cause: Cause) -> String {
    let servers = evidence.servers.as_ref();
    let (what, how) = if cause == Cause::KvRoom {
        let waited = |servers: &Servers| {
            format!("requests waited for KV blocks in {} of the steps", percent(servers.kv_full + servers.both))
        };
        let shape = || "most requests began early, and sequences stood still later".to_owned();
        ("KV room".to_owned(), servers.map_or_else(shape, waited))
    } else {
        let cap = evidence.max_num_seqs.map_or_else(String::new, |cap| format!(" (max_num_seqs {cap})"));
        let waited = |servers: &Servers| {
            format!(
                "requests waited with the batch at its cap in {} of the steps",
                percent(servers.at_cap + servers.both)
            )
        };
        let shape = || "requests began in waves, and no sequence stood still".to_owned();
        (format!("a cap on running sequences{cap}"), servers.map_or_else(shape, waited))
    };
    format!(
        "{} is limited by how much runs at once, and that by {what}: {how}; {} sequences decoded at once.",
        evidence.arm,
        decoding(evidence),
    )
}

fn undecided(evidence: &Evidence, candidates: &[Cause]) -> String {
    let name = &evidence.arm;
    if let [left @ .., Cause::SlowClient] = candidates
        && !left.is_empty()
    {
        let cause = if let [cause] = left { *cause } else { Cause::Undecided };
        let text = sentence(evidence, cause, left);
        return format!("{text} {PROVISO}");
    }
    let left = listed(candidates);
    if !only_room(candidates) {
        return format!("What bound {name} is undecided: {left}.");
    }
    let waves = Signs::of(evidence).filter(|signs| signs.half_by >= MOST_LATE).map_or("", |_| ", in waves");
    format!(
        "{name} is limited by how much runs at once (about {} of {} sequences{waves}), not by step time; whether {left} sets \
         that, these figures do not tell.",
        decoding(evidence),
        evidence.figures.requests,
    )
}

fn rate(evidence: &Evidence) -> String {
    match evidence.offered {
        Some(Offered::Rate(rate)) => format!("{rate:.2}"),
        _ => "-".to_owned(),
    }
}

fn lines(evidence: &Evidence, found: &Found) -> Vec<String> {
    let mut lines = Vec::new();
    let figures = &evidence.figures;
    if let Some(tpot) = figures.tpot_ms.mean.or(figures.tpot_ms.p50) {
        let which = if figures.tpot_ms.mean.is_some() { "mean" } else { "median" };
        lines.push(format!(
            "Little's law: {} output tokens/s × {which} TPOT {tpot:.1} ms = {} sequences decoding at once, of {} requests.",
            count(figures.output_tokens_per_second()),
            count(evidence.decoding().unwrap_or(0.0)),
            figures.requests,
        ));
    }
    if let Some(signs) = Signs::of(evidence) {
        lines.push(ttft_line(&signs));
        lines.extend(signs.uneven.map(tpot_line));
        if evidence.servers.is_none() {
            lines.push(format!(
                "By the lengths of prompts and answers, prefill took {} to {} of the time, and more room would have shortened at most {}.",
                percent(signs.prefill.0),
                percent(signs.prefill.1),
                percent(signs.room.1),
            ));
        }
    }
    if let Some(servers) = &evidence.servers {
        lines.extend(server_lines(servers, evidence));
    }
    if let Some(shares) = evidence.seen.and_then(|seen| seen.shares) {
        lines.push(format!(
            "A step took {:.1} ms and {:.3} ms for each sequence in it; of the time {} went to the first, {} to the second, {} to prompts.",
            shares.base_ms,
            shares.per_token_ms,
            percent(shares.base),
            percent(shares.tokens),
            percent(shares.prefill),
        ));
    }
    if let Some(lag) = evidence.lag_p99_ms {
        lines.push(format!("The load generator noted answers {lag:.1} ms late at the 99th percentile."));
    }
    if !found.share.is_empty() {
        let shares: Vec<String> =
            found.share.iter().map(|(cause, share)| format!("{} {}", cause.name(), percent(share.max(0.0)))).collect();
        lines.push(format!("Of the time could have been shortened by more of: {}.", shares.join(", ")));
    }
    lines
}

fn ttft_line(signs: &Signs) -> String {
    let shape = if signs.all_by < super::table_diagnosis::LATE {
        "all requests began early"
    } else if signs.half_by >= MOST_LATE {
        "requests began in waves, as others ended"
    } else {
        "most began early, and the rest as others ended"
    };
    format!("TTFT: median at {} of the run, P99 at {}: {shape}.", percent(signs.half_by), percent(signs.all_by))
}

fn tpot_line(uneven: f64) -> String {
    let shape = if uneven < EVEN {
        "no sequence stood still for long"
    } else if uneven > UNEVEN {
        "some sequences stood still: they lost their KV blocks on the way, or are short answers that met a burst of prompts"
    } else {
        "some met a burst of prompts"
    };
    format!("TPOT: P99 is {uneven:.1} × the median: {shape}.")
}

fn server_lines(servers: &Servers, evidence: &Evidence) -> Vec<String> {
    let mut lines = vec![format!(
        "The servers ran {} sequences on average ({} at most on one) with {} waiting; requests waited at the cap in {} of the steps, for KV blocks in {}, for both in {}, for prompts before them in {}.",
        count(servers.running),
        count(servers.running_peak),
        count(servers.waiting),
        percent(servers.at_cap),
        percent(servers.kv_full),
        percent(servers.both),
        percent(servers.in_prefill),
    )];
    let mut memory = Vec::new();
    memory.extend(servers.kv_tokens.map(|tokens| format!("{} tokens of KV room on each", count(tokens))));
    memory.extend(servers.kv_peak.map(|peak| format!("{} of it in use at most", percent(peak))));
    memory.extend(servers.preemptions.map(|lost| format!("{} preemptions", count(lost))));
    memory.extend(
        servers.prefix_hits.map(|hits| format!("{} of prompt tokens found in the prefix cache", percent(hits))),
    );
    if !memory.is_empty() {
        lines.push(format!("Memory: {}.", memory.join(", ")));
    }
    if let Some(seen) = &evidence.seen {
        let (done, stale) = unread(seen, servers, evidence.figures.duration_s);
        lines.push(format!(
            "The client had {} requests open on average, the servers {}: {} of that was unread, and the servers were done for {} of the run.",
            count(seen.open),
            count(servers.running + servers.waiting),
            percent(stale),
            percent(done),
        ));
    }
    lines
}

/// Says what would tell the candidates apart.
fn would_tell(evidence: &Evidence, found: &Found) -> Vec<String> {
    if found.cause != Cause::Undecided {
        return Vec::new();
    }
    let has = |cause: Cause| found.candidates.contains(&cause);
    let mut lines = Vec::new();
    if has(Cause::KvRoom) || has(Cause::CapOnRunning) {
        if evidence.kv_tokens.is_none() {
            lines.push("KV room: vLLM logs \"GPU KV cache size\" at its start and has vllm:cache_config_info (num_gpu_blocks × block_size), and vllm:kv_cache_usage_perc and vllm:num_preemptions_total during the run; full and rising say KV room.");
        }
        if evidence.max_num_seqs.is_none() {
            lines.push("max_num_seqs: vllm:num_requests_running standing at one value while vllm:num_requests_waiting is above 0 says a cap; the server's --max-num-seqs says which.");
        }
        lines.push("Other memory: nvidia-smi before the server starts; what another process holds on that GPU, or --gpu-memory-utilization withholds, is missing from the KV room.");
    }
    if has(Cause::SlowClient) {
        lines.push("A slow client: the load generator's own lag (forebay bench prints it), or tokens made by the servers (vllm:generation_tokens_total) before they were read.");
    }
    if has(Cause::StepTime) && has(Cause::Prefill) {
        lines.push("Prefill: the same load with prompts half as long.");
    }
    if has(Cause::Arrival) {
        lines.push("The load: the same arm at twice the rate; if throughput doubles, the arm kept up.");
    }
    lines.into_iter().map(str::to_owned).collect()
}
