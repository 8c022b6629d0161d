//! The file of client keys: lines of a name and a hash. Never repeats what it holds, not even in a complaint about it: a line
//! that is no hash may well be the key itself.

use std::collections::HashMap;
use std::ops::Range;

use super::files::Outside;
use super::keys::ClientKey;
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Diagnostic, Notes, Wrong};

const KEY_FORM: &str = "each line is `name = hash`; the hash is printed by: printf %s \"$KEY\" | sha256sum";

/// The client keys in the file called `name`: lines of `name = sha256 of the key, in hex`; `#` begins a comment.
pub(super) fn from_file(
    outside: &mut Outside<'_>,
    name: &str,
    span: Range<usize>,
    notes: &Notes,
) -> Option<Vec<ClientKey>> {
    let (path, text) = outside.named("clients.keys_file", name, span, notes)?;
    let path = path.display().to_string();
    let mut keys = Vec::new();
    let mut seen = HashMap::new();
    let mut lines = 0;
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // Counted also where it is wrong: "names no key" would be a second complaint about the same line.
        lines += 1;
        let key = client_key(line).and_then(|key| unique(key, number, &mut seen));
        match key {
            Ok(key) => keys.push(key),
            Err(wrong) => {
                let message = format!("clients.keys_file: {}", wrong.reason);
                let diagnostic = Diagnostic::elsewhere(path.as_str(), Some(number), message);
                notes.add(match wrong.hint {
                    Some(hint) => diagnostic.hint(hint),
                    None => diagnostic,
                });
            }
        }
    }
    if lines == 0 {
        let message = "clients.keys_file: the file names no key, so that no client could get in";
        notes.add(Diagnostic::elsewhere(path, None, message).hint(KEY_FORM));
    }
    Some(keys)
}

/// One line of the keys file.
fn client_key(line: &str) -> Result<ClientKey, Wrong> {
    let (name, hash) = line.split_once('=').ok_or_else(|| Wrong::because("the line has no `=`").hint(KEY_FORM))?;
    let name = name.trim();
    if !values::is_name(name) {
        return Err(Wrong::because("the part before the `=` is no name")
            .hint("use letters, digits, `_`, `-` and `.`, at most 64 of them"));
    }
    let sha256 = from_hex(hash.trim()).ok_or_else(|| {
        Wrong::because("the part after the `=` is no SHA-256 hash of 64 hexadecimal digits").hint(KEY_FORM)
    })?;
    Ok(ClientKey::unlimited(name, sha256))
}

/// Refuses a name or a hash that an earlier line has.
fn unique(key: ClientKey, line: usize, seen: &mut HashMap<Vec<u8>, usize>) -> Result<ClientKey, Wrong> {
    let by_name = seen.insert(key.name.clone().into_bytes(), line);
    let by_hash = seen.insert([b"=".as_slice(), key.sha256.as_slice()].concat(), line);
    match (by_name, by_hash) {
        (Some(first), _) => Err(Wrong::because(format!("line {first} has the same name"))
            .hint("give each key a name of its own; a key is replaced by changing its line")),
        (None, Some(first)) => Err(Wrong::because(format!("line {first} has the same hash"))
            .hint("a key that two names share cannot tell its clients apart")),
        (None, None) => Ok(key),
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    const HASH: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    #[test]
    fn a_line_is_a_name_and_a_hash() {
        let key = client_key(&format!("alice = {HASH}")).unwrap();
        assert_eq!((key.name.as_str(), key.sha256[0], key.sha256[31]), ("alice", 0x2c, 0xae));
        let digest: [u8; 32] = Sha256::digest(b"foo").into();
        assert_eq!(key.sha256, digest);
        assert!(client_key(&format!("alice = {}", HASH.to_uppercase())).is_ok());
    }

    #[test]
    fn a_complaint_never_repeats_the_line() {
        for line in ["sk-secret", "alice = sk-secret", "sk secret = x", &format!("sk-secret! = {HASH}")] {
            let wrong = client_key(line).unwrap_err();
            assert!(!wrong.reason.contains("secret"), "{}", wrong.reason);
        }
    }
}
