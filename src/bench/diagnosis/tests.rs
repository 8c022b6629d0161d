//! Facts that this module must hold.

use super::*;
use crate::bench::rows::Offered;

const S1: [f64; 14] =
    [300.0, 48.35, 30000.0, 161_719.0, 6.21, 620.52, 3344.91, 3965.41, 1818.40, 34395.81, 48.38, 91.12, 20.70, 10.97];
const S2: [f64; 14] =
    [300.0, 35.08, 30000.0, 162_191.0, 8.55, 855.28, 4623.98, 5479.26, 2226.99, 3921.81, 54.67, 109.14, 18.29, 9.16];

#[test]
fn a_contrast_is_what_runs_at_once_over_time_per_token() {
    let arms = [S1, S2].map(|rows| Evidence::of_table("x", Some(Offered::Unlimited), &rows));
    let found = &contrast(&arms)[0];
    assert!((found.ratio - found.at_once / found.per_token).abs() < 1e-9);
    assert!(found.at_once > 1.5 && found.per_token > 1.1 && found.sentence.contains("room"), "{found:?}");
    assert!(contrast(&[]).is_empty());
}

#[test]
fn nothing_known_is_undecided() {
    let found = diagnose(&Evidence::default());
    assert_eq!(found.cause, Cause::Undecided);
    assert!(agreed(&[]).is_none());
}
