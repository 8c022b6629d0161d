//! The state machine, by hand and by chance.

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { failures: 3, base: Duration::from_secs(5), max: Duration::from_secs(60) };

fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1000)
}

/// A machine with its moment: each call is made at `now`.
struct World {
    health: Health,
    rng: fastrand::Rng,
    now: Time,
}

impl World {
    fn new() -> World {
        World { health: Health::new(Time::ZERO), rng: fastrand::Rng::with_seed(7), now: at(100_000) }
    }

    fn answered(&mut self, good: bool) -> Effect {
        let verdict = if good { Ok(()) } else { Err("status 503".to_owned()) };
        self.health.answered(verdict, &RULES, self.now, &mut self.rng)
    }

    fn failed(&mut self, row: u32) -> Effect {
        self.health.failed(row, "died", &RULES, self.now, &mut self.rng)
    }

    fn hung(&mut self) -> Effect {
        self.health.hung("no progress".to_owned(), &RULES, self.now, &mut self.rng)
    }

    fn probed(&mut self, probed: Probed) -> Effect {
        self.health.probed(probed, &RULES, self.now, &mut self.rng)
    }

    fn state(&self) -> &'static str {
        self.health.state(None).label()
    }

    /// Moves time on until a probe is due; how long that took.
    fn until_probe(&mut self) -> Duration {
        let before = self.now;
        while !self.health.probe(self.now) {
            self.now = self.now + Duration::from_millis(10);
            assert!(self.now.since(before) < Duration::from_secs(100), "never probed");
        }
        self.now.since(before)
    }
}

fn about(length: Duration, seconds: f64) -> bool {
    (0.89..1.12).contains(&(length.as_secs_f64() / seconds))
}

#[test]
fn bad_answers_in_a_row_eject_and_a_good_one_breaks_the_row() {
    let mut world = World::new();
    for good in [false, false, true, false, false] {
        assert_eq!(world.answered(good), Effect::None);
    }
    assert_eq!(world.state(), "healthy");
    assert_eq!(world.answered(false), Effect::Ejected(Ejection::Health));
    assert_eq!(world.health.state(None), HealthState::Ejected("status 503".to_owned()));
}

#[test]
fn health_alone_brings_nothing_back() {
    let mut world = World::new();
    assert_eq!(world.failed(2), Effect::None);
    assert_eq!(world.failed(3), Effect::Ejected(Ejection::Failures));
    for _ in 0..100 {
        world.now = world.now + Duration::from_secs(2);
        world.answered(true);
        assert_eq!(world.state(), "ejected", "a server that drains says 200 and serves nobody");
    }
    assert!(world.health.probe(world.now));
    assert_eq!(world.state(), "probing");
    assert_eq!(world.health.standing(false), Standing::Out { since: at(100_000) }, "no client pays");
    assert_eq!(world.probed(Probed::Passed), Effect::Returned);
    assert_eq!((world.state(), world.health.standing(false)), ("healthy", Standing::In));
}

#[test]
fn ejections_double_to_their_limit_and_begin_anew_after_a_long_health() {
    let mut world = World::new();
    for length in [5.0, 10.0, 20.0, 40.0, 60.0, 60.0] {
        world.hung();
        assert!(about(world.until_probe(), length), "{length}");
        world.probed(Probed::Passed);
        world.now = world.now + Duration::from_secs(30);
    }
    world.now = world.now + Duration::from_secs(31);
    world.hung();
    assert!(about(world.until_probe(), 5.0), "it was in for longer than the longest ejection");
}

#[test]
fn a_probe_that_fails_is_made_again_soon_and_a_trial_that_fails_later() {
    let mut world = World::new();
    let since = world.now;
    world.hung();
    for _ in 0..20 {
        assert!(about(world.until_probe(), 5.0));
        assert_eq!(world.probed(Probed::Failed("status 500".to_owned())), Effect::None, "counted once");
        assert_eq!(world.health.standing(false), Standing::Out { since }, "out since the first time");
    }
    for length in [5.0, 10.0, 20.0] {
        assert!(about(world.until_probe(), length));
        world.probed(Probed::NoSuchRequest);
        assert_eq!(world.failed(1), Effect::Ejected(Ejection::Failures), "a client paid");
    }
}

#[test]
fn a_dead_health_is_not_probed_and_its_return_is_as_soon_as_it_lives() {
    let mut world = World::new();
    let died = world.health.died("its port refuses connections".to_owned(), &RULES, world.now, &mut world.rng);
    assert_eq!(died, Effect::Ejected(Ejection::Health));
    for _ in 0..50 {
        world.now = world.now + Duration::from_secs(2);
        assert!(!world.health.probe(world.now));
        assert_eq!(world.answered(false), Effect::None, "out already");
    }
    world.answered(true);
    assert!(world.health.probe(world.now), "a server that took long to start is not made to wait longer");
}

#[test]
fn without_a_request_of_our_own_one_of_a_client_s_decides() {
    let mut world = World::new();
    world.failed(3);
    world.until_probe();
    assert_eq!(world.probed(Probed::NoSuchRequest), Effect::OnTrial);
    assert_eq!((world.state(), world.health.standing(false)), ("probing", Standing::In));
    assert_eq!(world.failed(1), Effect::Ejected(Ejection::Failures), "one failure is enough");
    assert!(about(world.until_probe(), 10.0));
    world.probed(Probed::NoSuchRequest);
    assert_eq!(world.health.served(world.now), Effect::Returned);
    assert_eq!(world.state(), "healthy");
}

#[test]
fn a_full_backend_is_asked_again_and_not_for_longer_each_time() {
    let mut world = World::new();
    world.failed(3);
    world.until_probe();
    for _ in 0..5 {
        assert_eq!(world.probed(Probed::Busy), Effect::None);
        assert!(world.health.probe(world.now), "still due");
    }
    assert_eq!(world.probed(Probed::Passed), Effect::Returned);
}

#[test]
fn a_late_result_and_a_late_failure_change_nothing() {
    let mut world = World::new();
    world.failed(3);
    world.until_probe();
    world.probed(Probed::Passed);
    assert_eq!(world.probed(Probed::Failed("status 500".to_owned())), Effect::None);
    assert_eq!(world.state(), "healthy");
    world.hung();
    assert_eq!(
        (world.failed(9), world.hung(), world.health.served(world.now)),
        (Effect::None, Effect::None, Effect::None)
    );
}

#[test]
fn what_it_serves_and_the_operator_s_word_come_before_its_health() {
    let mut world = World::new();
    let wrong = world.health.misconfigured("404 for our model".to_owned(), at(1));
    assert_eq!(wrong, Effect::Ejected(Ejection::Misconfigured));
    assert_eq!(world.health.misconfigured("401".to_owned(), at(2)), Effect::None);
    assert_eq!(world.health.standing(false), Standing::Misconfigured { since: at(1) });
    world.answered(true);
    assert_eq!(world.state(), "misconfigured");
    let drained = world.health.state(Some("the file".to_owned()));
    assert_eq!((drained.label(), drained.reason()), ("drained", Some("the file")));
    assert_eq!(world.health.standing(true), Standing::Drained);
    world.health.configured();
    assert_eq!(world.state(), "healthy");
}

proptest! {
    /// Holds for any events: it is out for no longer than the longest ejection at a time, and a served request brings it back.
    #[test]
    fn no_run_of_events_keeps_a_backend_out_that_serves(events in prop::collection::vec((0_u8..9, 0_u64..20_000), 0..80)) {
        let mut world = World::new();
        for (event, ms) in events {
            world.now = world.now + Duration::from_millis(ms);
            match event {
                0 => drop(world.answered(true)),
                1 => drop(world.answered(false)),
                2 => drop(world.failed(u32::try_from(ms % 5).unwrap())),
                3 => drop(world.hung()),
                4 => drop(world.probed(Probed::Failed("x".to_owned()))),
                5 => drop(world.probed(Probed::Busy)),
                6 => drop(world.probed(Probed::NoSuchRequest)),
                7 => drop(world.health.served(world.now)),
                _ => drop(world.health.probe(world.now)),
            }
            let out = world.health.state(None) != HealthState::Healthy;
            prop_assert!(out || world.health.standing(false) == Standing::In);
        }
        world.answered(true);
        if world.health.phase == HealthPhase::OnTrial {
            world.health.served(world.now);
        } else if world.state() != "healthy" {
            prop_assert!(world.until_probe() <= RULES.max.mul_f64(1.0 + JITTER) + Duration::from_millis(10));
            world.probed(Probed::Passed);
        }
        prop_assert_eq!(world.state(), "healthy");
    }
}

#[test]
fn a_server_that_answers_nothing_is_stalled_until_it_speaks() {
    let mut world = World::new();
    let ask = |world: &mut World| world.health.unanswered("no answer".to_owned(), &RULES, world.now, &mut world.rng);
    assert_eq!([ask(&mut world), ask(&mut world)], [Effect::None; 2]);
    assert_eq!(world.health.stalled_since(), None, "two unanswered questions are a long prompt");
    assert_eq!(ask(&mut world), Effect::Ejected(Ejection::Health));
    let found = world.now;
    world.now = world.now + Duration::from_secs(60);
    ask(&mut world);
    assert_eq!(world.health.stalled_since(), Some(found), "as long as it lasts, and from the first finding on");
    world.answered(true);
    assert_eq!(world.health.stalled_since(), None);
}

#[test]
fn an_engine_that_hangs_is_stalled_until_it_serves_whatever_health_says() {
    let mut world = World::new();
    world.failed(3);
    world.hung();
    assert_eq!(world.health.stalled_since(), Some(world.now), "also where it was out already");
    world.answered(true);
    assert!(world.health.stalled_since().is_some());
    world.until_probe();
    world.probed(Probed::Failed("no token".to_owned()));
    assert!(world.health.stalled_since().is_some());
    world.until_probe();
    world.probed(Probed::Passed);
    assert_eq!(world.health.stalled_since(), None);
}

#[test]
fn a_server_that_ended_or_is_in_error_is_down_and_not_stalled() {
    let mut world = World::new();
    world.hung();
    world.health.died("its port refuses connections".to_owned(), &RULES, world.now, &mut world.rng);
    assert_eq!(world.health.stalled_since(), None);
    world.hung();
    for _ in 0..3 {
        world.answered(false);
    }
    assert_eq!(world.health.stalled_since(), None, "vLLM says itself that its engine is dead");
}
