//! A finding in words, with its figures. Pure.

use crate::rows::row_file::Offered;

use super::cause::{Cause, Diagnosis};
use super::evidence::Evidence;
use super::finding::{Found, drained};
use super::servers::Servers;
use super::table_diagnosis::{EVEN, MOST_LATE, Signs, UNEVEN};
use super::what_if::Gain;

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

pub(super) fn listed(causes: &[Cause]) -> String {
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
        sentence: sentence(evidence, found),
        evidence: lines(evidence),
        would_tell: would_tell(evidence, found),
    }
}

/// Returns whether all that is left is a kind of room.
fn only_room(candidates: &[Cause]) -> bool {
    !candidates.is_empty() && candidates.iter().all(|cause| matches!(cause, Cause::KvRoom | Cause::CapOnRunning))
}

/// The condition of a cause that a slow client would void.
const PROVISO: &str = "That holds if the load generator kept up, which is not known here.";

fn sentence(evidence: &Evidence, found: &Found) -> String {
    let name = &evidence.arm;
    let cause = found.cause;
    let text = match cause {
        Cause::KvRoom | Cause::CapOnRunning => room(evidence, cause),
        Cause::StepTime => format!(
            "{name} is limited by step time: requests seldom waited for a place, {} of {} sequences decoded at once, and each token \
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
        Cause::Concurrency => format!(
            "{name} is limited by the client's concurrency: it kept {} requests open and the servers would have taken more, so that \
             the throughput is the load's.",
            evidence.gate.unwrap_or(0),
        ),
        Cause::HttpSide => format!(
            "{name} is limited by the server's HTTP side: {}, and the load generator's own lag was {:.1} ms.",
            unread(evidence),
            evidence.lag_p99_ms.unwrap_or(0.0),
        ),
        Cause::SlowClient => format!(
            "{name} is not what limited this run, the load generator is: {}; these figures are not the arm's.",
            evidence.lag_p99_ms.map_or_else(|| unread(evidence), |lag| format!("it noted answers {lag:.1} ms late")),
        ),
        Cause::Undecided => return undecided(evidence, found),
    };
    match evidence.what_if.as_ref().and_then(|what_if| what_if.gain(cause)).filter(|gain| gain.most > 1.0) {
        Some(gain) => format!("{text} {}", gain_words(&gain)),
        None => text,
    }
}

/// Says what twice of a cause would have gained.
fn gain_words(gain: &Gain) -> String {
    let (what, least, most) = (twice(gain.cause), times(gain.least), times(gain.most));
    if least == most {
        format!("By a replay, {what} would make it {least} as fast.")
    } else {
        format!("By a replay, {what} would make it {least} to {most} as fast.")
    }
}

fn twice(cause: Cause) -> &'static str {
    match cause {
        Cause::KvRoom => "twice the KV cache",
        Cause::CapOnRunning => "twice the cap",
        Cause::StepTime => "steps in half the time",
        Cause::Prefill => "prompts computed in half the time",
        Cause::Arrival => "twice the load",
        Cause::Concurrency => "twice the concurrency",
        Cause::HttpSide => "half the time for an event",
        Cause::SlowClient => "a faster load generator",
        Cause::Undecided => "nothing",
    }
}

/// Says how long answers lay unread.
fn unread(evidence: &Evidence) -> String {
    format!("answers came {} ms after the engine had made them", count(evidence.unread_ms.unwrap_or(0.0)))
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
        ("KV-cache capacity".to_owned(), servers.map_or_else(shape, waited))
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

fn undecided(evidence: &Evidence, found: &Found) -> String {
    let name = &evidence.arm;
    // What a slow client would void stands as far as it goes.
    let (left, client) = match found.candidates.as_slice() {
        [left @ .., Cause::SlowClient] if !left.is_empty() => (left, true),
        left => (left, false),
    };
    let waves = Signs::of(evidence).filter(|signs| signs.half_by >= MOST_LATE).map_or("", |_| ", in waves");
    let guess = match left {
        [] => format!("What limited {name} is undecided."),
        [cause] => {
            let text = sentence(evidence, &Found::one(*cause));
            // A sentence on a slow client, whose subject is not the arm, keeps its words.
            if text.contains(" is limited by ") {
                text.replacen(" is limited by ", " is probably limited by ", 1)
            } else {
                format!("Probably, {text}")
            }
        }
        [first, others @ ..] if only_room(left) && evidence.servers.is_none() => format!(
            "{name} is probably limited by how much runs at once (about {} of {} sequences{waves}), not by step time. What sets \
             that is likelier {} than {}, but these figures do not tell.",
            decoding(evidence),
            evidence.figures.requests,
            first.name(),
            listed(others),
        ),
        _ => format!("What limited {name} is undecided: {}.", listed(left)),
    };
    let mut text = guess;
    if !found.doubts.is_empty() {
        text.push_str(&format!(" This is not sure, because {}.", found.doubts.join(", and ")));
    }
    if client {
        text.push(' ');
        text.push_str(PROVISO);
    }
    text
}

fn rate(evidence: &Evidence) -> String {
    match evidence.offered {
        Some(Offered::Rate(rate)) => format!("{rate:.2}"),
        _ => "-".to_owned(),
    }
}

fn lines(evidence: &Evidence) -> Vec<String> {
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
        lines.extend(server_lines(servers));
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
    if let Some(what_if) = &evidence.what_if {
        let gains = what_if.gains.iter().map(|gain| {
            format!("{} {} ({:.2} to {:.2})", twice(gain.cause), times(gain.likely), gain.least, gain.most)
        });
        lines.push(format!(
            "A replay took {:.2} × as long as the run. By it, the run would be faster with: {}.",
            what_if.alike.took,
            gains.collect::<Vec<_>>().join(", "),
        ));
        lines.push(format!(
            "The network's round trip took {:.1} ms, and {} of the open requests were neither in it nor at the servers{}.",
            what_if.round_trip_ms,
            percent(what_if.unread),
            what_if.event_us.map_or_else(String::new, |us| format!("; two events of one step were {us:.0} µs apart")),
        ));
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

fn server_lines(servers: &Servers) -> Vec<String> {
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
    memory.extend(servers.kv_tokens.map(|tokens| format!("{} tokens of KV cache on each", count(tokens))));
    memory.extend(servers.kv_peak.map(|peak| format!("{} of it in use at most", percent(peak))));
    memory.extend(servers.preemptions.map(|lost| format!("{} preemptions", count(lost))));
    memory.extend(
        servers.prefix_hits.map(|hits| format!("{} of prompt tokens found in the prefix cache", percent(hits))),
    );
    if !memory.is_empty() {
        lines.push(format!("Memory: {}.", memory.join(", ")));
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
            lines.push("KV-cache capacity: vLLM logs \"GPU KV cache size\" at its start and has vllm:cache_config_info (num_gpu_blocks × block_size), and vllm:kv_cache_usage_perc and vllm:num_preemptions_total during the run; full and rising say KV-cache capacity.");
        }
        if evidence.max_num_seqs.is_none() {
            lines.push("max_num_seqs: vllm:num_requests_running standing at one value while vllm:num_requests_waiting is above 0 says a cap; the server's --max-num-seqs says which.");
        }
        lines.push("Other memory: nvidia-smi before the server starts; what another process holds on that GPU, or --gpu-memory-utilization withholds, is missing from the KV-cache capacity.");
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
    if has(Cause::Concurrency) {
        lines.push(
            "The load: the same arm with twice the requests open; if throughput grows, the concurrency was the limit.",
        );
    }
    if evidence.servers.is_none() && evidence.seen.is_some() {
        lines.push("The servers' metrics: `forebay bench` scrapes them during the run, unless --no-scrape is given.");
    }
    lines.into_iter().map(str::to_owned).collect()
}
