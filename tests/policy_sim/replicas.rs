//! Several proxies that share nothing before the same backends, each request through one drawn at random.

use forebay_core::routing::policy::PolicyName;

use crate::affinity::{print, row};
use crate::peers::BoundedHash;
use crate::prefixes;
use crate::trials::compare;
use crate::workloads;
use crate::world::Chooser;

const OURS: (&str, Chooser<'static>) = ("predicted_ttft", Chooser::Named(PolicyName::PredictedTtft));

#[test]
fn zz_sessions() {
    let alone = compare(&workloads::w5().through(4), &[OURS]);
    let told = compare(&workloads::w5().through(4).as_replicas(), &[OURS]);
    for table in [alone, told] {
        println!("ZZ w5 {:.2?}", table.ratios("predicted_ttft", |f| f.p99));
    }
}

#[test]
fn zz_prefixes() {
    for make in [prefixes::a3, prefixes::a4, prefixes::a10] {
        let hash = row(&make(), ("bounded_hash", Chooser::Peer(|| Box::new(BoundedHash))));
        let one = row(&make(), ("one", OURS.1));
        let alone = row(&make().through(4, 1), ("four, untold", OURS.1));
        let told = row(&make().through(4, 4), ("four, told", OURS.1));
        print(&make(), &[&hash, &one, &alone, &told]);
    }
}
