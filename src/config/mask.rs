//! Blanks what looks like a secret in the text that a report shows: the value of a key that the file should not have
//! (`api_key = "sk-…"`), and a user or a password in a URL. Reports of a reload go to the log, and no secret belongs there.
//! Every blanked byte becomes a `*`, so that places in the text stay where they are.

use super::{files, schema};

/// Parts of a key's name that say that its value is a secret.
const SECRETIVE: [&str; 4] = ["key", "token", "secret", "passw"];

/// `text` with its secrets blanked; as long as before.
pub(super) fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        shown.push_str(&masked_line(line));
    }
    shown
}

fn masked_line(line: &str) -> String {
    let mut blank = vec![false; line.len()];
    for (equals, _) in line.match_indices('=') {
        let value = value_after(line, equals + 1);
        if is_secretive(&line[..equals], &line[value.clone()]) {
            blank[value].fill(true);
        }
    }
    if line.contains("url") || line.contains("://") {
        for (at, _) in line.match_indices('@') {
            let start = line[..at].rfind(|c: char| c == '"' || c == '\'' || c == '/' || c.is_whitespace());
            blank[start.map_or(0, |start| start + 1)..at].fill(true);
        }
    }
    let mut shown = String::with_capacity(line.len());
    for (at, character) in line.char_indices() {
        if blank[at] {
            shown.extend(std::iter::repeat_n('*', character.len_utf8()));
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Whether the key that ends `before` names a secret and is none of ours, or is ours and `value` no name of a variable.
fn is_secretive(before: &str, value: &str) -> bool {
    let key = before.trim_end().trim_end_matches(['"', '\'']);
    let start = key.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    let key = key[start.map_or(0, |at| at + key[at..].chars().next().map_or(1, char::len_utf8))..].to_ascii_lowercase();
    if key == "key_env" {
        return !files::is_variable(value.trim_matches(['"', '\'']));
    }
    SECRETIVE.iter().any(|part| key.contains(part)) && !schema::is_key(&key)
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
    use super::*;

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
}
