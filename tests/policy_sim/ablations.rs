//! What each term of the prediction is for: taken away, a bound of some workload breaks that holds with it.

use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::policy::PredictedTtft;

use crate::figures::Figures;
use crate::trials::{compare, policies};
use crate::workloads::{self, Workload};
use crate::world::Chooser;

/// The mean over seeds of a figure over the oracle's is at most `limit` with every term, and more without this one.
fn needed(workload: &Workload, limit: f64, figure: fn(&Figures) -> f64, without: fn(&mut [Candidate])) {
    let default = policies()[0];
    let table = compare(workload, &[default, ("without", Chooser::Trial(&PredictedTtft, without))]);
    let mean = |name| {
        let ratios = table.ratios(name, figure);
        ratios.iter().sum::<f64>() / ratios.len() as f64
    };
    let (whole, without) = (mean(default.0), mean("without"));
    println!("  {}: {whole:.2} with it, {without:.2} without, bound {limit:.2}\n", workload.name);
    assert!(whole <= limit && without > limit, "{whole} {without}");
}

#[test]
fn measured_ttft_is_for_mixed_speeds() {
    needed(&workloads::w3(), 1.2, |f| f.p99, |rows| rows.iter_mut().for_each(|row| row.k = 1.0));
}

#[test]
fn token_gaps_are_for_a_backend_that_slows_down() {
    needed(&workloads::w6(), 1.3, |f| f.tpot99, |rows| rows.iter_mut().for_each(|row| row.v = 1.0));
}

#[test]
fn outstanding_prompt_tokens_are_for_everything() {
    needed(
        &workloads::w1(),
        1.25,
        |f| f.p99,
        |rows| {
            rows.iter_mut().for_each(|row| (row.queued_tokens, row.head) = (0, None));
        },
    );
}

#[test]
fn affinity_is_for_sessions() {
    needed(&workloads::w5(), 1.25, |f| f.mean, |rows| rows.iter_mut().for_each(|row| row.matched = 0));
}

/// At 1.6 times what 64 in flight come to, the single GPUs' memory is full and they preempt; the pair has room.
#[test]
fn room_in_the_kv_cache_is_for_long_answers_past_its_wall() {
    let past_the_wall = workloads::w13().at_load(1.6);
    needed(&past_the_wall, 1.35, |f| f.p99, |rows| rows.iter_mut().for_each(|row| row.kv_capacity = None));
}

/// The engine does not report its limit: what waits for a place there waits beside an idle prefill queue.
#[test]
fn a_learned_limit_on_running_sequences_is_for_an_engine_that_has_one() {
    needed(&workloads::capped(), 1.5, |f| f.p99, |rows| rows.iter_mut().for_each(|row| row.running_limit = None));
}
