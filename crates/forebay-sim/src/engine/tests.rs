//! Facts that this module must hold.

use proptest::prelude::*;

use super::*;
use crate::profile::Profile;

fn config(num_blocks: u32) -> EngineConfig {
    EngineConfig { num_blocks, ..Profile::load("fast").unwrap().engine(1) }
}

fn ask(id: u64, prompt_tokens: u32, output_tokens: u32) -> Submission {
    let block_hashes = Arc::from([]);
    Submission { id: RequestId(id), prompt_tokens, output_tokens, sequences: 1, block_hashes }
}

fn hashed(id: u64, prompt: u32, hashes: impl IntoIterator<Item = u64>) -> Submission {
    Submission { block_hashes: hashes.into_iter().collect(), ..ask(id, prompt, 4) }
}

fn run(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(at) = engine.next_step_at() {
        engine.step(at, &mut events);
        assert!(engine.kv_blocks_in_use() <= engine.config().num_blocks);
        assert!(engine.running() <= engine.config().max_num_seqs as usize);
    }
    events
}

#[test]
fn one_request_takes_the_time_of_its_steps() {
    let cost = StepCost { base_us: 1000.0, decode_us: 100.0, prefill_us: 10.0, kv_us: 1.0, ..StepCost::default() };
    let mut engine = Engine::new(EngineConfig { cost, ..config(100) });
    engine.submit(Time::from_micros(50), &ask(1, 20, 3)).unwrap();
    let events = run(&mut engine);
    let first = 50 + 1000 + 200 + 20;
    let second = first + 1000 + 100 + 21;
    assert_eq!(
        events.iter().map(|e| (e.at.as_micros(), e.tokens, e.finished)).collect::<Vec<_>>(),
        [(first, 1, false), (second, 2, false), (second + 1000 + 100 + 22, 3, true)]
    );
    assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_in_use()), (0, 0, 0));
}

#[test]
fn the_all_reduce_adds_to_every_step_and_to_every_token_in_it() {
    let cost = StepCost { base_us: 1000.0, all_reduce_us: 300.0, all_reduce_token_us: 7.0, ..StepCost::default() };
    let mut engine = Engine::new(EngineConfig { cost, ..config(100) });
    engine.submit(Time::ZERO, &ask(1, 20, 2)).unwrap();
    let ends: Vec<u64> = run(&mut engine).iter().map(|event| event.at.as_micros()).collect();
    assert_eq!(ends, [1300 + 20 * 7, 1300 + 20 * 7 + 1300 + 7]);
}

#[test]
fn sequences_above_the_crowd_cost_more() {
    let cost = StepCost { base_us: 1000.0, decode_us: 10.0, crowd: 2, crowd_us: 100.0, ..StepCost::default() };
    assert_eq!([1, 2, 3, 5].map(|decoding| cost.step_us(decoding, 0, 0)), [1010.0, 1020.0, 1130.0, 1350.0]);
}

#[test]
fn a_slowed_engine_takes_longer_from_its_next_step_on() {
    let cost = StepCost { base_us: 1000.0, ..StepCost::default() };
    let mut engine = Engine::new(EngineConfig { cost, ..config(100) });
    engine.submit(Time::ZERO, &ask(1, 20, 3)).unwrap();
    let mut events = Vec::new();
    engine.step(Time::from_micros(500), &mut events);
    engine.slow_down(5.0);
    engine.step(Time::from_micros(3000), &mut events);
    engine.slow_down(1.0);
    events.extend(run(&mut engine));
    assert_eq!(events.iter().map(|event| event.at.as_micros()).collect::<Vec<_>>(), [1000, 6000, 7000]);
}

#[test]
fn a_prompt_that_does_not_fit_whole_waits_though_its_first_chunk_would_fit() {
    let mut engine = Engine::new(EngineConfig { max_num_batched_tokens: 64, ..config(20) });
    engine.submit(Time::ZERO, &ask(1, 60, 100)).unwrap();
    engine.submit(Time::ZERO, &ask(2, 300, 1)).unwrap();
    let events = run(&mut engine);
    assert_eq!(engine.counters().preemptions, 0);
    let ends: Vec<u64> = events.iter().filter(|event| event.finished).map(|event| event.id.0).collect();
    assert_eq!(ends, [1, 2]);
}

#[test]
fn a_long_prompt_is_cut_into_chunks_that_leave_room_for_decodes() {
    let mut engine = Engine::new(EngineConfig { max_num_batched_tokens: 64, ..config(100) });
    engine.submit(Time::ZERO, &ask(1, 10, 20)).unwrap();
    engine.submit(Time::ZERO, &ask(2, 200, 2)).unwrap();
    let events = run(&mut engine);
    let before = events.iter().take_while(|event| event.id == RequestId(1)).count();
    assert_eq!(before, 4, "54 + 63 + 63 + 20 tokens of the prompt, each beside a token of the other");
    assert_eq!(engine.counters().prefill_tokens, 210);
}

#[test]
fn no_work_is_lost_when_memory_runs_out() {
    let mut engine = Engine::new(config(40));
    for id in 0..30 {
        engine.submit(Time::ZERO, &ask(id, 100, 200)).unwrap();
    }
    let events = run(&mut engine);
    let counters = engine.counters();
    assert!(counters.preemptions > 0);
    assert_eq!((counters.finished, counters.generation_tokens, counters.prompt_tokens), (30, 6000, 3000));
    for id in 0..30 {
        let tokens: Vec<u32> = events.iter().filter(|e| e.id == RequestId(id)).map(|e| e.tokens).collect();
        assert_eq!(tokens, (1..=200).collect::<Vec<_>>(), "each token once and in order, preempted or not");
    }
    assert_eq!(engine.kv_blocks_in_use(), 0);
}

#[test]
fn the_sequence_admitted_last_is_preempted_and_comes_back_first() {
    let mut engine = Engine::new(config(4));
    engine.submit(Time::ZERO, &ask(1, 16, 40)).unwrap();
    engine.submit(Time::ZERO, &ask(2, 16, 40)).unwrap();
    engine.submit(Time::ZERO, &ask(3, 48, 1)).unwrap();
    let events = run(&mut engine);
    let ends: Vec<u64> = events.iter().filter(|event| event.finished).map(|event| event.id.0).collect();
    assert_eq!(ends, [1, 2, 3]);
    assert_eq!(events.iter().filter(|e| e.finished).map(|e| e.preemptions).collect::<Vec<_>>(), [0, 1, 0]);
}

#[test]
fn an_abort_frees_at_once() {
    let mut engine = Engine::new(config(20));
    engine.submit(Time::ZERO, &ask(1, 300, 10)).unwrap();
    engine.submit(Time::ZERO, &ask(2, 300, 1)).unwrap();
    let mut events = Vec::new();
    engine.step(Time::ZERO, &mut events);
    assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_in_use()), (1, 1, 19));
    assert_eq!(engine.abort(RequestId(1)), 1);
    assert_eq!((engine.running(), engine.kv_blocks_in_use()), (0, 0));
    assert_eq!(engine.abort(RequestId(1)), 0, "a second abort finds nothing");
    let events = run(&mut engine);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].id, RequestId(2));
}

#[test]
fn an_idle_engine_forgets_an_aborted_waiter() {
    let mut engine = Engine::new(config(20));
    engine.submit(Time::ZERO, &ask(1, 30, 10)).unwrap();
    engine.abort(RequestId(1));
    assert_eq!(engine.next_step_at(), None);
}

#[test]
fn what_cannot_fit_is_refused() {
    let mut engine = Engine::new(config(10));
    assert_eq!(engine.submit(Time::ZERO, &ask(1, 100, 61)), Err(SubmitError::TooLong { tokens: 161, capacity: 160 }));
    assert_eq!(engine.submit(Time::ZERO, &ask(1, 0, 5)), Err(SubmitError::Empty));
    assert!(engine.submit(Time::ZERO, &ask(1, 100, 60)).is_ok());
    assert_eq!(run(&mut engine).len(), 60);
}

#[test]
fn a_prompt_that_begins_alike_is_not_computed_again() {
    let mut engine = Engine::new(config(100));
    engine.submit(Time::ZERO, &hashed(1, 100, 0..6)).unwrap();
    run(&mut engine);
    let done = engine.counters().prefill_tokens;
    engine.submit(Time::ZERO, &hashed(2, 100, [0, 1, 2, 3, 9, 10])).unwrap();
    let events = run(&mut engine);
    assert_eq!(engine.counters().prefill_tokens - done, 100 - 64);
    assert_eq!((engine.counters().prefix_queries, engine.counters().prefix_hits), (200, 64));
    assert_eq!(events[0].cached_tokens, 64);
    engine.submit(Time::ZERO, &hashed(3, 96, 0..6)).unwrap();
    assert_eq!(run(&mut engine)[0].cached_tokens, 80, "the last token is computed in any case");
}

#[test]
fn sequences_of_one_request_run_side_by_side() {
    let mut engine = Engine::new(config(100));
    engine.submit(Time::ZERO, &Submission { sequences: 3, ..ask(1, 10, 2) }).unwrap();
    let events = run(&mut engine);
    assert_eq!(events.iter().map(|event| event.choice).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_same_calls_give_the_same_events_and_a_clone_goes_on_alike() {
    let jittery = EngineConfig { cost: StepCost { jitter: 0.2, ..config(60).cost }, ..config(60) };
    let trial = |seed| {
        let mut engine = Engine::new(EngineConfig { seed, ..jittery });
        for id in 0..20 {
            engine.submit(Time::ZERO, &ask(id, 30 + id as u32, 40)).unwrap();
        }
        let mut events = Vec::new();
        engine.step(Time::from_micros(20_000), &mut events);
        let mut clone = engine.clone();
        let rest = run(&mut engine);
        assert_eq!(rest, run(&mut clone));
        events.extend(rest);
        events
    };
    assert_eq!(trial(1), trial(1));
    assert_ne!(trial(1), trial(2));
}

#[test]
fn one_late_call_gives_what_many_punctual_ones_do() {
    let mut punctual = Engine::new(config(60));
    let mut late = Engine::new(config(60));
    for id in 0..10 {
        punctual.submit(Time::ZERO, &ask(id, 50, 30)).unwrap();
        late.submit(Time::ZERO, &ask(id, 50, 30)).unwrap();
    }
    let mut events = Vec::new();
    late.step(Time::from_micros(u64::MAX), &mut events);
    assert_eq!(run(&mut punctual), events);
}

/// The hashes of a sequence of the recording: the family's tokens, then its own.
fn chained(number: u64, family: u64, shared: u64, tokens: u64) -> Arc<[u64]> {
    let token = |at: u64| if at < shared { 1000 * (family + 1) + at } else { 100_000 + 1000 * number + at };
    let tokens: Vec<u32> = (0..tokens).map(|at| token(at) as u32).collect();
    crate::text::block_hashes(&tokens, 16).into()
}

/// `tests/real_vllm/schedule.py` drove vLLM's own scheduler, without a model. The engine schedules the same sequences in each
/// step; the time of a step says how many decoded and how many tokens of prompts were computed.
#[test]
fn each_step_holds_what_vllm_s_scheduler_put_into_it() {
    let text = include_str!("../../../../tests/fixtures/vllm-0.32.0/scheduler.json");
    let scenarios: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    for scenario in &scenarios {
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        let limit = |key: &str| number(&scenario[key]) as u32;
        let mut engine = Engine::new(EngineConfig {
            cost: StepCost { decode_us: 1000.0, prefill_us: 1.0, ..StepCost::default() },
            max_num_seqs: limit("max_num_seqs"),
            max_num_batched_tokens: limit("max_num_batched_tokens"),
            prefix_caching: scenario["prefix_caching"] == true,
            ..config(limit("num_blocks"))
        });
        let requests = scenario["requests"].as_array().unwrap();
        let mut asked = 0;
        let (mut now, mut events) = (Time::ZERO, Vec::new());
        for (index, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
            while asked < requests.len() && number(&requests[asked]["step"]) <= index as u64 {
                let part = |key: &str| number(&requests[asked][key]);
                let (prompt, output) = (part("prompt"), part("output"));
                let block_hashes = chained(asked as u64, part("family"), part("shared"), prompt + output);
                let request = Submission { block_hashes, ..ask(asked as u64, prompt as u32, output as u32) };
                engine.submit(now, &request).unwrap();
                asked += 1;
            }
            engine.step(now, &mut events);
            let ends = engine.next_step_at().unwrap();
            let length = ends.since(now).as_micros() as u64;
            let in_use = u64::from(engine.kv_blocks_in_use());
            let found = [
                length / 1000,
                length % 1000,
                engine.running() as u64,
                engine.waiting() as u64,
                in_use,
                engine.counters().preemptions,
            ];
            let recorded: Vec<u64> = step.as_array().unwrap().iter().map(number).collect();
            assert_eq!(found[..], recorded[..], "{}, step {index}", scenario["name"]);
            now = ends;
        }
        engine.step(now, &mut events);
        assert_eq!((engine.next_step_at(), engine.kv_blocks_in_use()), (None, 0));
        let counters = engine.counters();
        assert_eq!(
            (counters.prefix_queries, counters.prefix_hits),
            (number(&scenario["prefix_queries"]), number(&scenario["prefix_hits"])),
            "{}",
            scenario["name"]
        );
    }
}

#[derive(Clone, Debug)]
enum Call {
    Submit { prompt: u32, output: u32, sequences: u32, family: u64 },
    Abort(usize),
    Advance(u64),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        4 => (1..150_u32, 1..60_u32, 1..4_u32, 0..3_u64)
            .prop_map(|(prompt, output, sequences, family)| Call::Submit { prompt, output, sequences, family }),
        2 => any::<prop::sample::Index>().prop_map(|index| Call::Abort(index.index(1000))),
        4 => (0..20_000_u64).prop_map(Call::Advance),
    ];
    prop::collection::vec(call, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_free_at_the_end_of_any_interleaving(calls in calls(), caching in any::<bool>(), budget in 16..300_u32) {
        let mut engine = Engine::new(EngineConfig {
            prefix_caching: caching,
            max_num_batched_tokens: budget,
            max_num_seqs: 12,
            ..config(16)
        });
        let (mut now, mut events, mut live, mut tokens) = (Time::ZERO, Vec::new(), Vec::new(), 0_u64);
        for call in calls {
            match call {
                Call::Submit { prompt, output, sequences, family } => {
                    let id = RequestId(live.len() as u64);
                    let block_hashes = (0..u64::from(prompt / 16)).map(|block| family * 1000 + block).collect();
                    let request =
                        Submission { id, prompt_tokens: prompt, output_tokens: output, sequences, block_hashes };
                    prop_assert!(engine.submit(now, &request).is_ok());
                    live.push((id, output, sequences));
                }
                Call::Abort(index) if !live.is_empty() => {
                    let index = index % live.len();
                    engine.abort(live[index].0);
                    live[index].2 = 0;
                }
                Call::Abort(_) => {}
                Call::Advance(micros) => now = now + Duration::from_micros(micros),
            }
            engine.step(now, &mut events);
            prop_assert!(engine.kv_blocks_in_use() <= 16);
        }
        events.extend(run(&mut engine));
        prop_assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_in_use()), (0, 0, 0));
        for (id, output, sequences) in live {
            let ends = events.iter().filter(|event| event.id == id && event.finished).count() as u32;
            prop_assert!(sequences == 0 || ends == sequences);
            prop_assert!(events.iter().filter(|event| event.id == id).all(|event| event.tokens <= output));
            tokens += events.iter().filter(|event| event.id == id).count() as u64;
        }
        prop_assert_eq!(engine.counters().generation_tokens, tokens);
        prop_assert_eq!(engine.counters().iteration_tokens.iter().sum::<u64>(), engine.counters().steps);
    }
}
