//! The wait room under any interleaving: never more in flight than the limit, nobody stands while there is room for it, and
//! everything is given back.

use proptest::prelude::*;

use super::*;
use forebay_core::routing::eligible;
use forebay_core::routing::wait_room::fits;

/// A step of the property.
#[derive(Clone, Debug)]
enum Act {
    Ask { arm: u16, session: u8, sequences: u32 },
    End { which: prop::sample::Index, life: u8 },
    Leave(prop::sample::Index),
    Token(prop::sample::Index),
    Probe { port: u16, good: bool },
    Reload { limit: u32, shape: u8 },
    Pass(u64),
}

fn act(most_sequences: u32) -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0_u16..2, 0_u8..4, 1..=most_sequences)
            .prop_map(|(arm, session, sequences)| Act::Ask { arm, session, sequences }),
        5 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(which, life)| Act::End { which, life }),
        1 => any::<prop::sample::Index>().prop_map(Act::Leave),
        1 => any::<prop::sample::Index>().prop_map(Act::Token),
        1 => (1_u16..5, any::<bool>()).prop_map(|(port, good)| Act::Probe { port, good }),
        1 => (1_u32..5, 0_u8..4).prop_map(|(limit, shape)| Act::Reload { limit, shape }),
        1 => (1_u64..3000).prop_map(Act::Pass),
    ]
}

fn shapes(limit: u32, shape: u8) -> model::PoolConfig {
    match shape {
        0 => limited(limit, vec![arm("a", &[1, 2]), arm("b", &[3])]),
        1 => limited(limit, vec![arm("b", &[3, 4]), arm("a", &[1])]),
        2 => model::PoolConfig { cross_arm: false, ..limited(limit, vec![arm("a", &[1, 2]), arm("c", &[4])]) },
        _ => limited(limit, vec![arm("a", &[2])]),
    }
}

/// A fleet with all that is under way on it.
struct World {
    controller: Controller,
    hand: ManualClock,
    limit: u32,
    /// With the number of the configuration under which it was placed.
    open: Vec<(Ticket, u32)>,
    waiters: Vec<Waiting>,
    configs: u32,
}

impl World {
    fn new() -> World {
        let (controller, hand) = (controller(shapes(2, 0)), ManualClock::default());
        World { controller, hand, limit: 2, open: Vec::new(), waiters: Vec::new(), configs: 0 }
    }

    fn step(&mut self, act: Act) {
        let now = self.hand.clock().now();
        match act {
            Act::Ask { arm, session, sequences } => {
                let arms = u16::try_from(the_pool(&self.controller).arms().len()).unwrap();
                let facts = RequestFacts { arm: ArmIndex(arm % arms), sequences, ..facts() };
                match ask_as(&self.controller, &session.to_string(), &facts, &self.hand.clock()) {
                    Ok(Admission::Placed(placed)) => self.open.push((placed.dispatched.ticket, self.configs)),
                    Ok(Admission::Waiting(waiting)) => self.waiters.push(waiting),
                    Err(refusal) => assert_eq!(refusal, Refusal::NoBackend(MODEL.to_owned())),
                }
            }
            Act::End { which, life } if !self.open.is_empty() => {
                let (ticket, _) = self.open.swap_remove(which.index(self.open.len()));
                match life % 4 {
                    0 => ticket.finish(AttemptOutcome::Success, now),
                    1 => ticket.finish(AttemptOutcome::Neutral, now),
                    2 => ticket.finish(AttemptOutcome::Failed(Failure::Truncated), now),
                    _ => drop(ticket),
                }
            }
            Act::Leave(which) if !self.waiters.is_empty() => {
                drop(self.waiters.swap_remove(which.index(self.waiters.len())));
            }
            Act::Token(which) if !self.open.is_empty() => {
                let at = which.index(self.open.len());
                self.open[at].0.first_token(now);
            }
            Act::Probe { port, good } => {
                let snapshot = self.controller.fleet().snapshot();
                let found = snapshot.backends().find(|backend| backend.url == url(port)).map(|backend| backend.id);
                for _ in 0..3 {
                    let verdict = if good { Ok(()) } else { Err("down".to_owned()) };
                    found.into_iter().for_each(|id| self.controller.health(id, verdict.clone(), now));
                }
                // Its time out is over at once.
                let later = now + Duration::from_secs(3600);
                if let Some(id) = found.filter(|id| good && self.controller.wants_probe(*id, later)) {
                    self.controller.probed(id, Probed::Passed, now);
                }
            }
            Act::Reload { limit, shape } => {
                self.configs += 1;
                self.limit = limit;
                self.controller.apply(&[shapes(limit, shape)], now);
            }
            Act::Pass(ms) => {
                self.hand.advance(Duration::from_millis(ms));
                let now = self.hand.clock().now();
                self.waiters.iter().for_each(|waiting| waiting.look(now));
            }
            Act::End { .. } | Act::Leave(_) | Act::Token(_) => {}
        }
        self.collect();
    }

    /// Takes the places of those that were served.
    fn collect(&mut self) {
        let (configs, open) = (self.configs, &mut self.open);
        self.waiters.retain_mut(|waiting| match poll(waiting) {
            None => true,
            Some(Ok(placed)) => {
                open.push((placed.dispatched.ticket, configs));
                false
            }
            Some(Err(refusal)) => {
                assert_eq!(refusal, Refusal::NoBackend(MODEL.to_owned()));
                false
            }
        });
    }

    fn check(&self, strict: bool) {
        assert_eq!(room(&self.controller) as usize, self.waiters.len());
        let snapshot = self.controller.fleet().snapshot();
        for backend in snapshot.backends() {
            let here: Vec<_> = self.open.iter().filter(|(ticket, _)| ticket.backend().id == backend.id).collect();
            let placed_since = here.iter().any(|(_, configs)| *configs == self.configs);
            let in_flight = sequences_on(backend);
            assert!(in_flight <= self.limit || here.len() == 1 || !placed_since, "{in_flight} over {}", self.limit);
        }
        if strict {
            self.nobody_is_stranded();
        }
    }

    /// Of requests of one sequence each, none waits for an arm of which a backend that is in and not backing off has room.
    fn nobody_is_stranded(&self) {
        let (pool, now) = (the_pool(&self.controller), self.hand.clock().now());
        let view = FleetView::new(&self.controller.fleet().snapshot(), now);
        for (index, arm) in (0_u16..).zip(&view.pools[0].arms).filter(|(_, arm)| arm.waiting > 0) {
            let (facts, mut admitted) = (RequestFacts { arm: ArmIndex(index), ..facts() }, Vec::new());
            let scope = eligible::admit(&pool.seats, &facts, &[], pool.cross_arm, &mut admitted);
            assert!(scope.is_some(), "{} wait for arm {}, which has none to wait for", arm.waiting, arm.name);
            let loads: Vec<_> =
                admitted.iter().map(|&at| pool.members[usize::from(at)].backend.load.view(now)).collect();
            let off =
                |load: &crate::load::view::LoadView| load.open_for_seconds > 0.0 || (load.fails > 0 && load.probing);
            let all_off = loads.iter().all(off);
            for load in &loads {
                let room = fits(load.prefilling + load.decoding, 1, self.limit);
                assert!(!room || (off(load) && !all_off), "{} wait for arm {}: {load:?}", arm.waiting, arm.name);
            }
        }
    }

    fn end(mut self) {
        while let Some((ticket, _)) = self.open.pop() {
            drop(ticket);
            self.collect();
        }
        drop(self.waiters);
        assert_eq!(room(&self.controller), 0);
        for backend in self.controller.fleet().snapshot().backends() {
            let view = backend.load.view(at(0));
            assert_eq!((view.open_attempts, view.prefilling, view.decoding, view.kv_tokens), (0, 0, 0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nobody_stands_while_there_is_room_and_no_backend_has_more_than_its_limit(
        acts in prop::collection::vec(act(1), 0..150),
    ) {
        let mut world = World::new();
        for act in acts {
            world.step(act);
            world.check(true);
        }
        world.end();
    }

    #[test]
    fn with_requests_of_any_size_the_limit_holds_and_all_is_given_back(
        acts in prop::collection::vec(act(6), 0..150),
    ) {
        let mut world = World::new();
        for act in acts {
            world.step(act);
            world.check(false);
        }
        world.end();
    }
}

#[test]
fn concurrent_requests_that_wait_leave_and_end_are_all_served_and_counted_exactly() {
    let controller = controller(limited(3, vec![arm("a", &[1, 2])]));
    let clock = Clock::system();
    let served: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8_u64)
            .map(|seed| {
                let (controller, clock) = (&controller, clock.clone());
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    let (mut rng, mut open, mut served) = (fastrand::Rng::with_seed(seed), Vec::new(), 0);
                    for _ in 0..2000 {
                        let facts = sequences(1 + u32::from(rng.u8(..8) == 0));
                        let ticket = match ask_as(controller, &seed.to_string(), &facts, &clock).unwrap() {
                            Admission::Placed(placed) => placed.dispatched.ticket,
                            Admission::Waiting(waiting) if rng.u8(..4) == 0 => {
                                drop(waiting);
                                continue;
                            }
                            Admission::Waiting(mut waiting) => {
                                // Who holds while it waits would wait for itself.
                                open.clear();
                                let placed = runtime.block_on(async {
                                    tokio::time::timeout(Duration::from_secs(20), waiting.placed()).await
                                });
                                placed.expect("nobody is stranded").unwrap().dispatched.ticket
                            }
                        };
                        served += 1;
                        assert!(sequences_on(ticket.backend()) <= 3);
                        open.push(ticket);
                        if open.len() > 1 {
                            drop(open.swap_remove(0));
                        }
                    }
                    served
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(served > 8000, "{served}");
    assert_eq!((room(&controller), in_flight(&controller, at(0))), (0, 0));
}
