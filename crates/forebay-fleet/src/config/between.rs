//! What must hold between two values of the file, and how it is said where it does not: at the value that was written, with
//! the other one beside it.

use std::ops::Range;
use std::time::Duration;

use forebay_core::toml_reader::notation::duration_text;
use forebay_core::toml_reader::{Diagnostic, Got, Notes, Table};

/// Notes a timeout that is longer than the interval after which its next round begins.
pub(super) fn in_time(table: &Table<'_>, timeout: Duration, interval: Duration) {
    let (timeout, interval) = (table.got("timeout", timeout), table.got("interval", interval));
    // A value that is wrong by itself was noted already, and compares with nothing.
    if timeout.wrong || interval.wrong || timeout.value <= interval.value {
        return;
    }
    let message = format!(
        "{}: {} is longer than {} ({})",
        table.full("timeout"),
        shown(&timeout, duration_text(timeout.value)),
        table.full("interval"),
        duration_text(interval.value)
    );
    let hint = format!("set timeout to at most \"{}\"", duration_text(interval.value));
    both(table.notes(), message, &hint, (&timeout.span, &interval.span), "the interval");
}

/// `text`, the value of `got`, with a word where the operator did not write it.
pub(super) fn shown<T>(got: &Got<T>, text: String) -> String {
    if got.span.is_some() { text } else { text + " (the default)" }
}

/// Notes a mistake between two values: at the first if it is written, else at the second.
pub(super) fn both(
    notes: &Notes,
    message: String,
    hint: &str,
    spans: (&Option<Range<usize>>, &Option<Range<usize>>),
    label: &'static str,
) {
    let diagnostic = match spans {
        // One of the two may be a default, which stands nowhere. The mistake is shown where the operator wrote
        // something.
        (Some(first), second) => Diagnostic::at(first.clone(), message).also(second.clone(), label),
        (None, Some(second)) => Diagnostic::at(second.clone(), message),
        (None, None) => Diagnostic::whole(message),
    };
    notes.add(diagnostic.hint(hint));
}
