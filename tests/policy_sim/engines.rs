//! The simulated servers of the workloads, and what each can serve.

use forebay_core::clock::Time;
use forebay_sim::engine::{Engine, EngineConfig, RequestId, StepCost, Submission};
use std::sync::Arc;

use crate::traffic::Mix;

const fn engine(cost: [f64; 4], max_num_seqs: u32, kv_tokens: u32) -> EngineConfig {
    let [base_us, decode_us, prefill_us, kv_us] = cost;
    EngineConfig {
        cost: StepCost {
            base_us,
            decode_us,
            prefill_us,
            kv_us,
            crowd_us: 0.0,
            crowd: 0,
            all_reduce_us: 0.0,
            all_reduce_token_us: 0.0,
            jitter: 0.0,
        },
        max_num_seqs,
        max_num_batched_tokens: 2048,
        block_size: 16,
        num_blocks: kv_tokens / 16,
        prefix_caching: true,
        seed: 0,
    }
}

/// One RTX 4090 with a 7B model, fitted to the public benchmark.
pub(crate) const TP1: EngineConfig = engine([17_500.0, 105.0, 102.0, 0.060], 256, 104_000);
/// Two of them over PCIe, fitted to the same: prefills slower than one, has four times its memory.
pub(crate) const TP2_PCIE: EngineConfig = engine([16_000.0, 108.0, 116.0, 0.035], 512, 400_000);
/// What two of them would be with a fast link: 1.4 times as fast as one.
pub(crate) const TP2_FAST: EngineConfig = engine([12_500.0, 75.0, 73.0, 0.037], 256, 400_000);
/// Half as fast as one.
pub(crate) const HALF: EngineConfig = engine([35_000.0, 210.0, 204.0, 0.120], 256, 104_000);

/// The same engine, `factor` times as slow.
pub(crate) fn slowed(cost: StepCost, factor: f64) -> StepCost {
    StepCost {
        base_us: cost.base_us * factor,
        decode_us: cost.decode_us * factor,
        crowd_us: cost.crowd_us * factor,
        prefill_us: cost.prefill_us * factor,
        kv_us: cost.kv_us * factor,
        ..cost
    }
}

/// Requests a second with 64 always in flight: a closed backlog, not so deep that KV room decides. Nothing is shared between
/// prompts, so that sessions count as if every turn were computed anew.
pub(crate) fn capacity(config: EngineConfig, mix: Mix) -> f64 {
    const DEPTH: u64 = 64;
    const SERVED: u64 = 2000;
    let mut engine = Engine::new(config);
    let mut rng = fastrand::Rng::with_seed(0x5eed);
    let mut submit = |engine: &mut Engine, id: u64, now: Time| {
        let (prompt_tokens, output_tokens) = mix.draw(&mut rng);
        let request =
            Submission { id: RequestId(id), prompt_tokens, output_tokens, sequences: 1, block_hashes: Arc::from([]) };
        engine.submit(now, &request).unwrap();
    };
    (0..DEPTH).for_each(|id| submit(&mut engine, id, Time::ZERO));
    let (mut events, mut ended, mut from) = (Vec::new(), 0, Time::ZERO);
    loop {
        let now = engine.next_step_at().unwrap();
        engine.step(now, &mut events);
        for event in events.drain(..).filter(|event| event.finished) {
            submit(&mut engine, DEPTH + ended, event.at);
            ended += 1;
            if ended == SERVED / 4 {
                from = event.at;
            }
            if ended == SERVED {
                return (SERVED - SERVED / 4) as f64 / event.at.secs_since(from);
            }
        }
    }
}
