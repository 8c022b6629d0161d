//! The six columns of the public benchmark, diagnosed from the table alone: a golden file (`UPDATE_GOLDEN=1` rewrites it).

use std::fmt::Write;
use std::path::Path;

use forebay::bench::diagnosis::{Cause, Evidence, contrast, diagnose};
use forebay::bench::rows::Offered;

#[rustfmt::skip]
const COLUMNS: [(&str, &str, [f64; 14]); 6] = [
    ("Qwen-7B", "S1", [
        300.0, 48.35, 30000.0, 161_719.0, 6.21, 620.52, 3344.91, 3965.41, 1818.40, 34395.81, 48.38, 91.12, 20.70, 10.97]),
    ("Qwen-7B", "S3", [
        300.0, 106.97, 30000.0, 162_207.0, 2.80, 280.46, 1516.37, 1796.83, 34768.42, 88093.83, 32.72, 86.83, 30.56, 11.50]),
    ("Qwen-7B", "S2", [
        300.0, 35.08, 30000.0, 162_191.0, 8.55, 855.28, 4623.98, 5479.26, 2226.99, 3921.81, 54.67, 109.14, 18.29, 9.16]),
    ("Llama-8B", "S1", [
        300.0, 72.42, 30000.0, 165_500.0, 4.14, 414.28, 2285.44, 2699.72, 1934.14, 43966.05, 63.14, 144.73, 15.83, 6.91]),
    ("Llama-8B", "S3", [
        300.0, 190.69, 30000.0, 166_019.0, 1.57, 157.32, 870.61, 1027.93, 80444.02, 178_349.91, 33.33, 96.93, 30.00, 10.31]),
    ("Llama-8B", "S2", [
        300.0, 49.22, 30000.0, 164_855.0, 6.10, 609.55, 3349.59, 3959.14, 2450.92, 4586.66, 64.61, 121.51, 15.48, 8.23]),
];

#[test]
fn the_seed_s_table_alone_says_what_limited_each_arm_and_what_would_tell_the_rest() {
    let mut out = String::new();
    for model in COLUMNS.chunks_exact(3) {
        let _ = writeln!(out, "# {}", model[0].0);
        let arms: Vec<Evidence> =
            model.iter().map(|(_, arm, rows)| Evidence::of_table(arm, Some(Offered::Unlimited), rows)).collect();
        for evidence in &arms {
            let found = diagnose(evidence);
            let _ = writeln!(out, "\n{}", found.sentence);
            for line in &found.evidence {
                let _ = writeln!(out, "  - {line}");
            }
            for line in &found.would_tell {
                let _ = writeln!(out, "  ? {line}");
            }
        }
        let _ = writeln!(out);
        for contrast in contrast(&arms) {
            let _ = writeln!(out, "{}", contrast.sentence);
        }
        let _ = writeln!(out);
        let s3 = diagnose(&arms[1]);
        assert_eq!(s3.cause, Cause::Undecided, "which room, a table does not tell");
        assert!(
            s3.candidates.iter().all(|cause| matches!(cause, Cause::KvRoom | Cause::CapOnRunning | Cause::SlowClient)),
            "{s3:?}"
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/seed_diagnosis.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &out).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), out, "UPDATE_GOLDEN=1 rewrites it");
}
