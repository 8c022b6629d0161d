//! What the configuration takes from outside its own file: the client keys, the admin token, the environment. Everything
//! read is part of the hash, so that a rotated key is a changed configuration. Never repeats what such a file holds, not
//! even in a complaint about it: a line that is no hash may well be the key itself.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::model::{ClientKey, Secret};
use forebay_core::toml_reader::Wrong;
use forebay_core::toml_reader::values;
use forebay_core::toml_reader::{Diagnostic, Notes, quoted};

/// The most that is read of any file.
const LARGEST: u64 = 4 << 20;

/// The environment, looked up by name.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The surroundings of the file that is read.
pub(super) struct Outside<'a> {
    dir: PathBuf,
    env: Env<'a>,
    hash: Sha256,
    read: Vec<PathBuf>,
}

impl<'a> Outside<'a> {
    /// The surroundings of the file at `path`: names in it are relative to its folder.
    pub(super) fn of(path: &Path, env: Env<'a>) -> Outside<'a> {
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Outside { dir, env, hash: Sha256::new(), read: Vec::new() }
    }

    /// Reads the file at `path` and makes it part of the hash, as its absence would be.
    pub(super) fn file(&mut self, path: &Path) -> Result<String, String> {
        self.read.push(path.to_path_buf());
        let result = read(path);
        match &result {
            Ok(text) => self.text(text),
            Err(reason) => self.absorb(b"e", reason),
        }
        result
    }

    /// Makes `text` part of the hash, as a file with that content.
    pub(super) fn text(&mut self, text: &str) {
        self.absorb(b"t", text);
    }

    fn absorb(&mut self, kind: &[u8], content: &str) {
        self.hash.update(kind);
        self.hash.update((content.len() as u64).to_le_bytes());
        self.hash.update(content);
    }

    /// The hash of everything read, and the files.
    pub(super) fn finish(self) -> ([u8; 32], Vec<PathBuf>) {
        (self.hash.finalize().into(), self.read)
    }

    /// The file called `name` at `span`, unless it cannot be read, which is noted under `key`.
    fn named(&mut self, key: &str, name: &str, span: Range<usize>, notes: &Notes) -> Option<(PathBuf, String)> {
        let path = self.dir.join(name);
        // A pipe or a device would be read for ever, also by `forebay check`.
        let regular = std::fs::metadata(&path).map(|metadata| metadata.is_file()).map_err(|error| error.to_string());
        let content = match regular {
            Ok(true) => self.file(&path),
            Ok(false) => Err("it is not a regular file".to_owned()),
            Err(reason) => Err(reason),
        };
        match content {
            Ok(text) => Some((path, text)),
            Err(reason) => {
                let message = format!("{key}: cannot read {}: {reason}", quoted(&path.display().to_string()));
                notes.add(Diagnostic::at(span, message).hint("the path is relative to the folder of this file"));
                None
            }
        }
    }

    /// The content of the file called `name` at `span`, unless it cannot be read, which is noted under `key`.
    pub(super) fn content(&mut self, key: &str, name: &str, span: Range<usize>, notes: &Notes) -> Option<String> {
        self.named(key, name, span, notes).map(|(_, text)| text)
    }

    /// The path of the file called `name`, unless there is none, which is noted under `key`. Its content is no part of the hash: who
    /// reads it later sees what it then holds.
    pub(super) fn present(&self, key: &str, name: &str, span: Range<usize>, notes: &Notes) -> Option<PathBuf> {
        let path = self.dir.join(name);
        let reason = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => return Some(path),
            Ok(_) => "it is not a regular file".to_owned(),
            Err(error) => error.to_string(),
        };
        let message = format!("{key}: cannot read {}: {reason}", quoted(&path.display().to_string()));
        notes.add(Diagnostic::at(span, message).hint("the path is relative to the folder of this file"));
        None
    }

    /// The admin token in the file called `name`.
    pub(super) fn token(&mut self, name: &str, span: Range<usize>, notes: &Notes) -> Option<Secret> {
        self.word("admin.token_file", "token", name, span, notes)
    }

    /// The secret in the file called `name`, which `key` names: its content without the space around it. `what`: the word for it.
    pub(super) fn word(
        &mut self,
        key: &str,
        what: &str,
        name: &str,
        span: Range<usize>,
        notes: &Notes,
    ) -> Option<Secret> {
        let (path, text) = self.named(key, name, span, notes)?;
        // An editor ends the file with a line feed, which no header may carry.
        let token = text.trim();
        let wrong = if token.is_empty() {
            format!("holds no {what}")
        } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            "holds more than one word, or characters that cannot be sent in a header".to_owned()
        } else {
            return Some(Secret::new(token));
        };
        let hint = if what == "token" {
            "put one random word into it, such as: openssl rand -hex 32"
        } else {
            "put the word into it that the server was started with (vllm serve --api-key)"
        };
        let message = format!("{key}: the file {wrong}");
        notes.add(Diagnostic::elsewhere(path.display().to_string(), None, message).hint(hint));
        None
    }

    /// The client keys in the file called `name`: lines of `name = sha256 of the key, in hex`; `#` begins a comment.
    pub(super) fn client_keys(&mut self, name: &str, span: Range<usize>, notes: &Notes) -> Option<Vec<ClientKey>> {
        let (path, text) = self.named("clients.keys_file", name, span, notes)?;
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

    /// The key in the environment variable `name`.
    pub(super) fn variable(&self, name: &str) -> Result<Secret, Wrong> {
        // what is no name may be the key itself: it is not repeated
        if !values::is_variable(name) {
            return Err(Wrong::because("this is no name of an environment variable")
                .hint("write the name, such as \"VLLM_KEY\", of the variable that holds the key"));
        }
        let value = (self.env)(name).ok_or_else(|| {
            Wrong::because(format!("the environment variable `{name}` is not set"))
                .hint("export it where Forebay is started")
        })?;
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Wrong::because(format!(
                "the environment variable `{name}` holds nothing that can be sent in a header"
            ))
            .hint("it must be one word of visible ASCII characters"));
        }
        Ok(Secret::new(value))
    }
}

const KEY_FORM: &str = "each line is `name = hash`; the hash is printed by: printf %s \"$KEY\" | sha256sum";

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

/// The content of a file that is text and not too large.
fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LARGEST {
        return Err("it is larger than 4 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("it is not UTF-8 text (line {line})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"a\nb\xff").unwrap();
        assert_eq!(read(file.path()), Err("it is not UTF-8 text (line 2)".to_owned()));
    }
}
