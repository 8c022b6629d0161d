//! Affinity through the dispatcher: what was sent where, over ends, reloads and removals.

use super::*;
use forebay_core::sample::Sample;

fn request(est_tokens: u32, session: u64) -> RequestFacts {
    RequestFacts { est_tokens, marks: Marks::session(session), ..facts() }
}

/// Sends a request that ends well, and says where and how much of it was expected to be cached.
fn served(controller: &Controller, facts: &RequestFacts, now: Time) -> (BackendId, u32) {
    let mut trace = Trace::default();
    let mut rng = fastrand::Rng::with_seed(now.as_micros());
    let Dispatched { mut ticket, decision, .. } =
        the_pool(controller).dispatch_traced(facts, &[], now, &mut rng, &mut trace).unwrap();
    let row = trace.rows.iter().find(|row| row.backend == decision.backend).unwrap();
    // As long as was predicted, so that nothing looks fast or slow.
    let then = now + ticket.predicted_ttft().unwrap();
    ticket.first_token(then);
    ticket.finish(AttemptOutcome::Success, then);
    (decision.backend, row.matched)
}

fn scrape(controller: &Controller, queries: f64, hits: f64, now: Time) {
    for backend in controller.fleet().snapshot().backends() {
        let sample = Sample { prefix_queries: Some(queries), prefix_hits: Some(hits), ..Sample::default() };
        backend.load.set_sample(sample, now);
    }
}

#[test]
fn a_session_comes_back_and_brings_only_what_is_new() {
    let controller = controller(pool(vec![arm("default", &[1, 2, 3, 4])]));
    let (home, matched) = served(&controller, &request(2000, 7), at(0));
    assert_eq!(matched, 0);
    for turn in 1..50 {
        let (backend, matched) = served(&controller, &request(2000 + 100 * turn, 7), at(u64::from(turn) * 1000));
        assert_eq!(backend, home);
        assert!(matched >= 1900, "{matched}");
    }
    let ticket = the_pool(&controller)
        .dispatch(&request(7000, 7), &[], at(100_000), &mut fastrand::Rng::with_seed(1))
        .unwrap()
        .ticket;
    assert!(ticket.backend().load.view(at(100_000)).queued_prompt_tokens < 200);
}

#[test]
fn affinity_survives_a_reload_and_a_removed_backend_claims_nothing() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let (home, _) = served(&controller, &request(3000, 7), at(0));
    let stays = if home == id(&controller, 1) { 1 } else { 2 };
    controller.apply(&[pool(vec![arm("default", &[5, 6, stays])])], at(1));
    let (backend, matched) = served(&controller, &request(3100, 7), at(2));
    assert!(backend == home && matched >= 2900);
    controller.apply(&[pool(vec![arm("default", &[5, 6])])], at(3));
    assert_eq!(served(&controller, &request(3200, 7), at(4)).1, 0);
    controller.apply(&[pool(vec![arm("default", &[5, 6, stays])])], at(5));
    assert_ne!(id(&controller, stays), home, "it comes back as another");
}

#[test]
fn a_cache_without_hits_wins_no_more_and_a_restarted_engine_holds_nothing() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    scrape(&controller, 0.0, 0.0, at(0));
    for second in 0..40_u64 {
        served(&controller, &request(4000, second % 4), at(second * 1000));
        scrape(&controller, 0.0, 0.0, at(second * 1000 + 500));
    }
    let (_, matched) = served(&controller, &request(4000, 1), at(41_000));
    assert!(matched < 800, "nothing was ever found: {matched}");

    let other = super::controller(pool(vec![arm("default", &[1, 2])]));
    scrape(&other, 9000.0, 5000.0, at(0));
    served(&other, &request(4000, 1), at(10));
    assert!(served(&other, &request(4000, 1), at(20)).1 > 3900);
    scrape(&other, 10.0, 0.0, at(1000));
    assert_eq!(served(&other, &request(4000, 1), at(1010)).1, 0, "its counters began anew");
}

#[test]
fn a_loaded_home_is_left_when_waiting_costs_more_than_the_prefill_here_and_for_who_comes_next() {
    let controller = controller(pool(vec![arm("default", &[1, 2])]));
    let (home, _) = served(&controller, &request(2000, 7), at(0));
    let other = controller.fleet().snapshot().backends().map(|backend| backend.id).find(|id| *id != home).unwrap();
    let (now, mut rng) = (at(5000), fastrand::Rng::with_seed(2));
    // 1,500 tokens ahead of it: less than the 2,000 that it saves.
    let queue = |tokens, rng: &mut fastrand::Rng| {
        let facts = RequestFacts { est_tokens: tokens, ..facts() };
        the_pool(&controller).dispatch(&facts, &[other], now, rng).unwrap().ticket
    };
    let first = queue(1500, &mut rng);
    let choice = |rng: &mut fastrand::Rng| {
        the_pool(&controller).dispatch(&request(2000, 7), &[], now, rng).unwrap().decision.backend
    };
    assert_eq!(choice(&mut rng), home);
    // A copy elsewhere delays the requests behind it as well: 2,000 tokens count twice on an idle backend.
    let second = queue(1500, &mut rng);
    assert_eq!(choice(&mut rng), home);
    let third = queue(1500, &mut rng);
    assert_eq!(choice(&mut rng), other);
    drop((first, second, third));
}
