//! Four proxies that share nothing before the same backends, each request through one drawn at random. That they are told how many
//! they are is all that they know of each other.

#[cfg(not(debug_assertions))]
use crate::affinity::mean;
use crate::affinity::{OURS, print, row};
use crate::bounds::Bounds;
use crate::figures::most;
use crate::peers::BoundedHash;
use crate::prefixes::{self, Prefixes};
use crate::trials::compare;
use crate::workloads;
use crate::world::Chooser;

/// Whole sessions meet different proxies: only what all presume alike keeps a session at one backend.
#[test]
fn sessions_through_four_proxies_keep_their_backends() {
    let untold = compare(&workloads::w5().through(4), &[OURS]);
    let told = compare(&workloads::w5().through(4).told_of_each_other(), &[OURS]);
    Bounds::of(&told).p99(1.6).hold();
    let pairs = told.row(OURS.0).seeds.iter().zip(&untold.row(OURS.0).seeds);
    let ratios: Vec<f64> = pairs.map(|(told, untold)| told.p99 / untold.p99).collect();
    println!("  p99 TTFT over that of proxies that are not told: {ratios:.2?}, bound 0.7\n");
    assert!(most(&ratios) <= 0.7, "{ratios:?}");
}

#[test]
fn a_session_hash_in_front_gives_what_one_proxy_has() {
    let table = compare(&workloads::w5().through(4).told_of_each_other().behind_a_session_hash(), &[OURS]);
    // The mean over seeds: a new session goes home, also where another backend has less to do.
    Bounds::of(&table).mean_p99(1.45).hold();
}

/// Shared prefixes, beside one balancer that hashes with bounded load. `limit` is of P99 TTFT.
fn prefixes_through_four(make: fn() -> Prefixes, limit: f64) {
    let hash = row(&make(), ("bounded_hash", Chooser::Peer(|| Box::new(BoundedHash))));
    let untold = row(&make().through(4, 1), ("four, untold", OURS.1));
    let told = row(&make().through(4, 4), ("four, told", OURS.1));
    print(&make(), &[&hash, &untold, &told]);
    // A build without optimisation runs one seed, which shows that it runs.
    #[cfg(not(debug_assertions))]
    {
        let (told, hash, untold) = (mean(&told, |f| f.p99), mean(&hash, |f| f.p99), mean(&untold, |f| f.p99));
        println!("  {}: {:.2} of the hash's p99, bound {limit}\n", make().name, told / hash);
        assert!(told <= limit * hash && told < untold, "{told} {hash} {untold}");
    }
    _ = limit;
}

#[test]
fn popular_prefixes_through_four_proxies() {
    prefixes_through_four(prefixes::a4, 1.0);
}

#[test]
fn a_server_that_joins_behind_four_proxies() {
    prefixes_through_four(prefixes::a10, 1.0);
}

/// A system prompt that all conversations begin with has no home, or all of them would go there.
#[test]
#[cfg(not(debug_assertions))]
fn a_common_system_prompt_through_four_proxies() {
    let [one, four] = [1, 4].map(|count| row(&prefixes::a7s().through(count, count as u32), OURS));
    print(&prefixes::a7s(), &[&one, &four]);
    let (one, four) = (mean(&one, |f| f.p99), mean(&four, |f| f.p99));
    println!("  a7s: {:.2} of the p99 through one proxy, bound 1.2\n", four / one);
    assert!(four <= 1.2 * one, "{four} {one}");
}

/// Prefixes that fit into the caches once: a hash that is uneven by a few evicts, and so do the copies that a queue makes.
#[test]
fn prefixes_that_fit_once_through_four_proxies() {
    prefixes_through_four(prefixes::a3, 1.0);
}
