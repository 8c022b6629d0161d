//! The six columns of the public benchmark, diagnosed from the table alone: a golden file (`UPDATE_GOLDEN=1` rewrites it).

use std::fmt::Write;
use std::path::Path;

use forebay_lab::diagnosis::{Cause, Evidence, contrast, diagnose};
use forebay_lab::rows::published_benchmark::{Column, MEASURED};
use forebay_lab::rows::row_file::Offered;

#[test]
fn the_seed_s_table_alone_says_what_limited_each_arm_and_what_would_tell_the_rest() {
    let mut out = String::new();
    for model in MEASURED {
        let _ = writeln!(out, "# {}", model.model);
        let of_table = |column: &Column| Evidence::of_table(column.arm, Some(Offered::Unlimited), &column.rows);
        let arms: Vec<Evidence> = model.columns.iter().map(of_table).collect();
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
        assert_eq!(s3.cause, Cause::Undecided, "a table does not tell surely");
        assert_eq!(
            s3.candidates[0],
            Cause::CapOnRunning,
            "requests began in waves, which short prompts do before a cap"
        );
        assert!(s3.sentence.contains("likelier a cap on running sequences than KV-cache capacity"), "{}", s3.sentence);
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
