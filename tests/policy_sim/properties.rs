//! What holds beside the bounds: several proxies that share nothing, backends that are out and come back, and work that shows
//! no tokens. Every run of every test also checks that no backend that is out gets a request, and that each is served.

use forebay_core::routing::policy::PolicyName;

use crate::bounds::Bounds;
use crate::figures::most;
use crate::traffic::at;
use crate::trials::{compare, policies};
use crate::workloads;
use crate::world::{self, Chooser};

#[test]
fn four_proxies_without_shared_state_do_not_herd() {
    let one = compare(&workloads::w2(), &policies()[..1]);
    let four = compare(&workloads::w2().through(4), &policies());
    let pairs = four.row("predicted_ttft").seeds.iter().zip(&one.row("predicted_ttft").seeds);
    let ratios: Vec<f64> = pairs.map(|(four, one)| four.p99 / one.p99).collect();
    println!("  four proxies over one, p99 TTFT by seed: {ratios:.2?}, bound 1.30\n");
    assert!(most(&ratios) <= 1.3, "{ratios:?}");
}

#[test]
fn a_backend_that_was_ejected_has_half_of_its_share_within_thirty_seconds() {
    let table = compare(&workloads::ejected(), &policies());
    Bounds::of(&table)
        .p99(1.25)
        .each_at_least("share 0 to 30 s after return", 0.125, |f| f.share(0, 80.0, 110.0))
        .hold();
}

#[test]
fn nothing_starves_without_streams() {
    let table = compare(&workloads::unstreamed(), &policies());
    Bounds::of(&table).p99_below("round_robin").each_at_least("least share", 0.01, |f| f.share(3, 20.0, 140.0)).hold();
}

/// Four equal servers whose TTFT lies below what is expected at first, and does not grow with what they have to do.
#[test]
fn equal_servers_share_though_their_ttft_does_not_grow_with_load() {
    let run = |seed| {
        let workload = workloads::flat();
        world::run(&workload.fleet, &workload.requests(seed), Chooser::Named(PolicyName::PredictedTtft), seed)
    };
    for seed in crate::trials::seeds() {
        let mut counts = [0_usize; 4];
        run(seed).served.iter().for_each(|served| counts[served.backend] += 1);
        let all: usize = counts.iter().sum();
        println!("  flat: {counts:?} of {all}, bound 2 times an even share\n");
        assert!(counts.iter().all(|&count| count * 2 <= all), "{counts:?}");
    }
}

/// Two hundred clients come at once before two equal servers, of which one is slower meanwhile, and leave. Then both are alike.
#[test]
fn equal_servers_share_after_a_storm_that_met_them_unequal() {
    for seed in crate::trials::seeds() {
        let workload = workloads::storm();
        let requests = workload.requests(seed);
        let run = world::run(&workload.fleet, &requests, Chooser::Named(PolicyName::PredictedTtft), seed);
        let (storm, after): (Vec<world::Served>, Vec<world::Served>) =
            run.served.into_iter().partition(|served| served.arrived < at(60.0));
        assert!(storm.iter().all(|served| served.ended < at(60.0)), "the storm has left");
        let first = after.iter().filter(|served| served.backend == 0).count();
        println!("  storm: {first} of {} after it to the first, bound 0.2 to 0.8\n", after.len());
        assert!((0.2..=0.8).contains(&(first as f64 / after.len() as f64)), "{first} of {}", after.len());
    }
}
