//! What holds beside the bounds: several proxies that share nothing, backends that are out and come back, and work that shows
//! no tokens. Every run of every test also checks that no backend that is out gets a request, and that each is served.

use crate::bounds::Bounds;
use crate::figures::most;
use crate::trials::{POLICIES, compare};
use crate::workloads;

#[test]
fn four_proxies_without_shared_state_do_not_herd() {
    let one = compare(&workloads::w2(), &POLICIES[..1]);
    let four = compare(&workloads::w2().through(4), POLICIES);
    let pairs = four.row("predicted_ttft").seeds.iter().zip(&one.row("predicted_ttft").seeds);
    let ratios: Vec<f64> = pairs.map(|(four, one)| four.p99 / one.p99).collect();
    println!("  four proxies over one, p99 TTFT by seed: {ratios:.2?}, bound 1.30\n");
    assert!(most(&ratios) <= 1.3, "{ratios:?}");
}

#[test]
fn a_backend_that_was_ejected_has_half_of_its_share_within_thirty_seconds() {
    let table = compare(&workloads::ejected(), POLICIES);
    Bounds::of(&table)
        .p99(1.25)
        .each_at_least("share 0 to 30 s after return", 0.125, |f| f.share(0, 80.0, 110.0))
        .hold();
}

#[test]
fn nothing_starves_without_streams() {
    let table = compare(&workloads::unstreamed(), POLICIES);
    Bounds::of(&table).p99_below("round_robin").each_at_least("least share", 0.01, |f| f.share(3, 20.0, 140.0)).hold();
}
