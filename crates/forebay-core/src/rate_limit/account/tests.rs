//! One client's account: alone, and sixteen of them at three times their limits in virtual time.

use proptest::prelude::*;

use super::*;

fn at(seconds: f64) -> Time {
    Time::ZERO + Duration::from_secs_f64(seconds)
}

fn limits(requests: u32, tokens: u32, concurrent: u32) -> Limits {
    let of = |limit: u32| (limit > 0).then(|| PerMinute::of(limit));
    Limits { requests: of(requests), tokens: of(tokens), concurrent: (concurrent > 0).then_some(concurrent) }
}

#[test]
fn a_client_without_limits_is_counted_and_never_refused() {
    let mut account = Account::new(Limits::default(), at(0.0));
    for _ in 0..1000 {
        account.enter(u64::MAX, at(0.0)).unwrap();
        account.charge(u64::MAX, at(0.0)).unwrap();
        account.correct(u64::MAX, 0, at(0.0));
    }
    assert_eq!((account.in_flight(), account.standing(at(0.0))), (1000, [None, None]));
}

#[test]
fn what_is_refused_costs_nothing() {
    let mut account = Account::new(limits(600, 600, 2), at(0.0));
    account.enter(60, at(0.0)).unwrap();
    account.charge(60, at(0.0)).unwrap();
    account.enter(1, at(0.0)).unwrap();
    let refused = account.charge(10, at(0.0)).unwrap_err();
    assert_eq!(refused, Refused { over: Over::Tokens, after: Duration::from_secs(1) });
    account.leave();
    let [requests, tokens] = account.standing(at(0.0)).map(Option::unwrap);
    assert_eq!((account.in_flight(), requests.remaining, tokens.remaining), (1, 59, 0));
    assert_eq!(
        (requests.limit, requests.reset, tokens.reset),
        (600, Duration::from_millis(100), Duration::from_secs(6))
    );
}

#[test]
fn places_are_limited_and_come_back() {
    let mut account = Account::new(limits(0, 0, 1), at(0.0));
    account.enter(0, at(0.0)).unwrap();
    assert_eq!(account.enter(0, at(0.0)), Err(Refused { over: Over::Concurrent, after: AGAIN }));
    account.leave();
    account.enter(0, at(0.0)).unwrap();
}

#[test]
fn a_refusal_names_the_time_at_which_no_limit_stands_in_the_way() {
    let mut account = Account::new(limits(60, 600, 0), at(0.0));
    for _ in 0..6 {
        account.enter(10, at(0.0)).unwrap();
        account.charge(10, at(0.0)).unwrap();
    }
    account.correct(10, 110, at(0.0));
    // A request comes back in 1 s, the tokens in 10 s for the debt and 1 s for its own.
    let refused = account.enter(10, at(0.0)).unwrap_err();
    assert_eq!((refused.over, refused.after), (Over::Requests, Duration::from_secs(11)));
    account.enter(10, at(11.0)).unwrap();
    account.charge(10, at(11.0)).unwrap();
}

#[test]
fn usage_corrects_the_estimate_both_ways_and_a_failure_gives_all_back() {
    let mut account = Account::new(limits(0, 6000, 0), at(0.0));
    let left = |account: &Account| account.tokens.as_ref().unwrap().level(at(0.0));
    for (used, remains) in [(30, 570.0), (250, 350.0), (100, 500.0), (0, 600.0), (1600, -1000.0)] {
        account.retune(limits(0, 0, 0), at(0.0));
        account.retune(limits(0, 6000, 0), at(0.0));
        account.charge(100, at(0.0)).unwrap();
        account.correct(100, used, at(0.0));
        assert_eq!(left(&account), remains, "{used}");
    }
    assert!(account.charge(1, at(0.0)).is_err() && account.charge(0, at(0.0)).is_ok(), "who needs none pays none");
}

/// One client that asks at three times its limit, in even or random steps, and repeats nothing. Its requests take `seconds` and cost
/// other than estimated. Returns the requests and the tokens that it got in three minutes.
fn three_minutes(account: &mut Account, limit: f64, seconds: f64, chance: &mut fastrand::Rng) -> (f64, f64) {
    let (mut now, mut requests, mut tokens) = (0.0, 0.0, 0.0);
    let mut ends: std::collections::VecDeque<(f64, u64, u64)> = std::collections::VecDeque::new();
    loop {
        now += (0.5 + chance.f64()) * 60.0 / (3.0 * limit);
        while ends.front().is_some_and(|(end, ..)| *end <= now.min(180.0)) {
            let (end, taken, used) = ends.pop_front().unwrap();
            account.correct(taken, used, at(end));
            account.leave();
            tokens += used as f64;
        }
        if now > 180.0 {
            // What is still under way is not over yet, but is used.
            return (requests, tokens + ends.iter().map(|(_, _, used)| *used as f64).sum::<f64>());
        }
        let (estimate, used) = (chance.u64(5..=15), chance.u64(5..=25));
        if account.enter(estimate, at(now)).is_err() {
            continue;
        }
        match account.charge(estimate, at(now)) {
            Ok(()) => {
                requests += 1.0;
                ends.push_back((now + seconds, estimate, used));
            }
            Err(_) => account.leave(),
        }
    }
}

#[test]
fn sixteen_clients_at_three_times_their_limit_each_get_it_and_one_bucket() {
    let mut chance = fastrand::Rng::with_seed(7);
    for client in 0..16 {
        let limit = 600 + 150 * client;
        let expected = f64::from(limit) * 3.1;
        let mut account = Account::new(limits(limit, 0, 0), at(0.0));
        let (requests, _) = three_minutes(&mut account, f64::from(limit), 0.3, &mut chance);
        assert!((requests / expected - 1.0).abs() < 0.02, "{requests} of {expected}");
        // Fifteen tokens a request on average, so that tokens are what is short.
        let tokens_limit = limit * 15;
        let mut account = Account::new(limits(0, tokens_limit, 0), at(0.0));
        let (_, tokens) = three_minutes(&mut account, f64::from(limit), 0.3, &mut chance);
        let expected = f64::from(tokens_limit) * 3.1;
        assert!((tokens / expected - 1.0).abs() < 0.02, "{tokens} of {expected}");
    }
}

proptest! {
    /// Places and buckets are what they were once everything has ended, in whatever order it did.
    #[test]
    fn all_that_is_taken_comes_back(steps in prop::collection::vec((0_u8..4, 0_u64..100, any::<prop::sample::Index>()), 1..200)) {
        let mut account = Account::new(limits(100_000, 100_000, 5), at(0.0));
        let mut under_way: Vec<u64> = Vec::new();
        for (step, tokens, which) in steps {
            if step > 0 {
                if account.enter(tokens, at(0.0)).is_ok() {
                    match account.charge(tokens, at(0.0)) {
                        Ok(()) => under_way.push(tokens),
                        Err(_) => account.leave(),
                    }
                }
            } else if !under_way.is_empty() {
                let taken = under_way.swap_remove(which.index(under_way.len()));
                account.correct(taken, 0, at(0.0));
                account.leave();
            }
            prop_assert_eq!(account.in_flight() as usize, under_way.len());
            let [_, tokens] = account.standing(at(0.0)).map(Option::unwrap);
            prop_assert_eq!(u64::from(tokens.remaining) + under_way.iter().sum::<u64>(), 10_000);
        }
    }

    /// A client that comes back when it was told to passes, whichever limit it was over.
    #[test]
    fn who_comes_back_in_time_passes(requests in 1_u32..600, tokens in 1_u32..6000, costs in prop::collection::vec(1_u64..500, 1..60)) {
        let mut account = Account::new(limits(requests, tokens, 0), at(0.0));
        let mut now = at(0.0);
        for cost in costs {
            let refused = match account.enter(cost, now) {
                Err(refused) => refused,
                Ok(()) => match account.charge(cost, now) {
                    Ok(()) => continue,
                    Err(refused) => {
                        account.leave();
                        refused
                    }
                },
            };
            let wait = refused.after + Duration::from_micros(1);
            // A second before it is still too early, if it was more than that.
            if let Some(early) = wait.checked_sub(Duration::from_millis(1001)) {
                let mut earlier = account.clone();
                let passes = earlier.enter(cost, now + early).and_then(|()| earlier.charge(cost, now + early));
                prop_assert!(passes.is_err());
            }
            now = now + wait;
            prop_assert!(account.enter(cost, now).is_ok());
            prop_assert!(account.charge(cost, now).is_ok());
        }
    }
}
