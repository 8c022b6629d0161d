//! The key that backends are sent, of a list or of a source of theirs.

use super::files::Outside;
use super::secret::Secret;
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Diagnostic, Table};

/// The key that backends are sent: from the environment or from a file.
pub(super) fn backend_key(table: &Table<'_>, outside: &mut Outside<'_>) -> Option<Secret> {
    let from_env = table.or("key_env", None, |value| outside.variable(values::text(value)?).map(Some));
    let file = table.get("key_file", None, |value| values::line(4096)(value).map(Some));
    let (Some(name), Some(span)) = (file.value, file.span) else { return from_env };
    if table.value("key_env").is_some() {
        let message = format!("{}: there is a key_env, too", table.full("key_file"));
        table.notes().add(Diagnostic::at(span, message).hint("leave one of the two out"));
        return None;
    }
    outside.word(&table.full("key_file"), "key", &name, span, table.notes())
}
