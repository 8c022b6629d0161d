//! Blanks what looks like a secret in the text that a report shows: the value of a key that the file should not have
//! (`api_key = "sk-…"`), and a user or a password in a URL. Reports of a reload go to the log, and no secret belongs there.
//! Every blanked byte becomes a `*`, so that places in the text stay where they are.

use super::section::{Schema, is_variable};

/// Parts of a key's name that say that its value is a secret.
const SECRETIVE: [&str; 4] = ["key", "token", "secret", "passw"];

/// `text` with its secrets blanked; as long as before.
pub(super) fn masked(schema: &Schema, text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        shown.push_str(&masked_line(schema, line));
    }
    shown
}

fn masked_line(schema: &Schema, line: &str) -> String {
    let mut blank = vec![false; line.len()];
    let mut done = 0;
    for (equals, _) in line.match_indices('=') {
        // what is within a value that was looked at is no key; and every byte is looked at once
        if equals < done {
            continue;
        }
        let Some(key) = secretive_key(schema, &line[done..equals]) else { continue };
        let value = value_after(line, equals + 1);
        done = value.end.max(equals + 1);
        if !schema.variables.contains(&key.as_str()) || !is_variable(line[value.clone()].trim_matches(['"', '\''])) {
            blank[value].fill(true);
        }
    }
    // A URL may carry a name and a password before its `@`.
    if line.contains("url") || line.contains("://") {
        blank_users(line, &mut blank);
    }
    let mut shown = String::with_capacity(line.len());
    for (at, character) in line.char_indices() {
        if blank[at] {
            // As many bytes as before, so that every place in the file stays where the message points.
            shown.extend(std::iter::repeat_n('*', character.len_utf8()));
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Blanks what stands before an `@`, back to a quote, a slash or a space.
fn blank_users(line: &str, blank: &mut [bool]) {
    let mut word = 0;
    for (at, character) in line.char_indices() {
        match character {
            '@' => {
                blank[word..at].fill(true);
                word = at + 1;
            }
            '"' | '\'' | '/' => word = at + 1,
            space if space.is_whitespace() => word = at + space.len_utf8(),
            _ => {}
        }
    }
}

/// The key that ends `before` if it names a secret: not one of ours, but for `key_env`, whose value may be one by mistake.
fn secretive_key(schema: &Schema, before: &str) -> Option<String> {
    let key = before.trim_end().trim_end_matches(['"', '\'']);
    let start = key.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    let start = start.map_or(0, |at| at + key[at..].chars().next().map_or(1, char::len_utf8));
    let key = key[start..].to_ascii_lowercase();
    let secretive = SECRETIVE.iter().any(|part| key.contains(part));
    (secretive && (schema.variables.contains(&key.as_str()) || !schema.is_key(&key))).then_some(key)
}

/// The value that starts at `from`: to its closing quote, else to a comma, a brace, a comment or the end of the line.
fn value_after(line: &str, from: usize) -> std::ops::Range<usize> {
    let rest = &line[from..];
    let start = from + (rest.len() - rest.trim_start().len());
    let value = &line[start..];
    let end = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].find(quote).map(|length| length + 2),
        Some('[' | '{') => None,
        _ => value.find([',', '}', '#']),
    };
    let end = end.map_or(start + value.trim_end().len(), |length| start + length);
    start..end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::section::SMALL;

    fn masked(text: &str) -> String {
        super::masked(&SMALL, text)
    }

    #[test]
    fn what_looks_like_a_secret_is_blanked() {
        assert_eq!(masked("api_key = \"sk-1\" # x\nb = 1"), "api_key = ****** # x\nb = 1");
        assert_eq!(masked("token = sk-1"), "token = ****");
        assert_eq!(masked("{ key_env = \"sk-1\" }"), "{ key_env = ****** }");
        assert_eq!(masked("{ url = \"http://u:pw@h\", key = 'é' }"), "{ url = \"http://****@h\", key = **** }");
        assert_eq!(masked("keys = [\"a\", \"b\"]\n"), "keys = **********\n");
        assert_eq!(masked("url = \"u:pw@h:8001\""), "url = \"****@h:8001\"");
    }

    #[test]
    fn our_own_keys_are_shown() {
        for line in
            ["key_env = \"VLLM_KEY\"", "first_token_timeout = \"off\"", "keys_file = \"a.keys\"", "token_file = 'x'"]
        {
            assert_eq!(masked(line), line);
        }
    }

    proptest! {
        #[test]
        fn places_stay_where_they_are(text in "(key|url|env|_|é|[=\"'@/ ,}#\\[\n\r]){0,40}") {
            let shown = masked(&text);
            prop_assert_eq!(shown.len(), text.len());
            prop_assert_eq!(shown.matches('\n').count(), text.matches('\n').count());
        }
    }
}
