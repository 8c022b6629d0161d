//! A configuration file: read or refused, never a panic. What is refused has a reason for each mistake, and what is read is
//! read alike a second time.

#![no_main]

use std::path::Path;

use forebay_fleet::config::{diff, load_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // No such folder: a file that the text names by a relative path is absent on every machine.
    let path = Path::new("/no/such/folder/forebay.toml");
    let env = |name: &str| (name == "VLLM_KEY").then(|| "secret-of-the-environment".to_owned());
    match load_text(path, &text, &env) {
        Ok(loaded) => {
            let again = load_text(path, &text, &env).expect("it was right a moment ago");
            assert_eq!(loaded.hash, again.hash);
            let changes = diff(&loaded.config, &again.config);
            assert!(format!("{changes:?}").len() < 1_000, "a configuration differs from itself: {changes:?}");
        }
        Err(report) => {
            assert!(!report.diagnostics().is_empty(), "refused without a reason");
            assert_eq!(report.lines().len(), report.diagnostics().len());
            let shown = report.render(false);
            assert!(!shown.contains("secret-of-the-environment"), "{shown}");
            let _ = report.render(true);
        }
    }
});
