//! What a kind of file may hold: its sections, their keys, and, for a name that is none of these, what was probably meant.
//! Says nothing of values.

/// The moment at which a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// With the reload.
    AtOnce,
    /// With the next start of the process.
    Restart,
}

/// The default of a key, for the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultText {
    /// A value in the form in which an operator writes it.
    Written(String),
    /// In words, where it depends on the machine or on other keys, or where there is none. Markdown.
    Words(&'static str),
}

/// One key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The name in the file.
    pub name: &'static str,
    /// With its section in front: `listen.address`.
    pub full: &'static str,
    /// The values that it takes, in words. Markdown.
    pub takes: fn() -> String,
    /// Its default.
    pub default: fn() -> DefaultText,
    /// The moment at which a change takes effect.
    pub reload: Reload,
    /// The effect of the key. The text of a doc comment, so it may begin with a space. Markdown.
    pub about: &'static str,
}

impl Key {
    /// Returns a key of which only the name is told.
    #[must_use]
    pub const fn named(name: &'static str) -> Key {
        let default = || DefaultText::Words("");
        Key { name, full: name, takes: String::new, default, reload: Reload::AtOnce, about: "" }
    }

    /// Returns a key for each of `names`.
    #[must_use]
    pub const fn all_named<const N: usize>(names: [&'static str; N]) -> [Key; N] {
        let mut keys = [Key::named(""); N];
        let mut at = 0;
        while at < N {
            keys[at] = Key::named(names[at]);
            at += 1;
        }
        keys
    }
}

/// The keys of one section of a file.
#[derive(Debug)]
pub struct Section {
    /// The name in the file: `listen`, `pools.arms`; empty for the file itself.
    pub name: &'static str,
    /// The head in the file.
    pub head: &'static str,
    /// An example of the form in the file.
    pub form: &'static str,
    /// The purpose of the section. The text of a doc comment, so it may begin with a space. Markdown.
    pub about: &'static str,
    /// The keys that it may hold.
    pub keys: &'static [Key],
    /// The keys that a later version will know.
    pub later: &'static [&'static str],
}

impl Section {
    /// Returns whether `name` is one of its keys.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }

    fn names(&self) -> Vec<&'static str> {
        self.keys.iter().map(|key| key.name).collect()
    }
}

/// The content that one kind of file may have.
#[derive(Debug)]
pub struct Schema {
    /// The file itself.
    pub root: &'static Section,
    /// All its sections, with `root`.
    pub sections: &'static [&'static Section],
    /// Keys whose value is the name of an environment variable: a report shows it, where it is one.
    pub variables: &'static [&'static str],
    /// Reason why a key that one may expect (section, key) is not here.
    pub needless: fn(&str, &str) -> Option<&'static str>,
    /// A hint in place of an unknown key (section, key), where a better one is known than by its spelling.
    pub instead: fn(&str, &str) -> Option<&'static str>,
}

impl Schema {
    /// Returns whether `key` is known, or will be, in some section.
    #[must_use]
    pub fn is_key(&self, key: &str) -> bool {
        self.sections.iter().any(|section| section.has(key) || section.later.contains(&key))
    }

    /// The section that has `key`, if one below the root does.
    fn elsewhere(&self, key: &str) -> Option<&'static Section> {
        self.sections.iter().find(|section| !section.name.is_empty() && section.has(key)).copied()
    }

    /// Returns what was probably meant by the unknown `key` in `section`, as a hint.
    #[must_use]
    pub fn meant(&self, section: &Section, key: &str) -> String {
        if let Some(instead) = (self.instead)(section.name, key) {
            return instead.to_owned();
        }
        // A slip of one letter is likelier than a key of another section, which is likelier than a slip of several.
        let (near, elsewhere) = (nearest(key, &section.names()), self.elsewhere(key));
        if let Some(near) = near.filter(|near| elsewhere.is_none() || strsim::damerau_levenshtein(key, near) == 1) {
            return format!("did you mean `{near}`?");
        }
        if let Some(other) = elsewhere {
            return format!("`{key}` belongs in {}", other.head);
        }
        let known = section.names().join(", ");
        format!("{} may hold {known}", section.head)
    }
}

/// Returns whether `name` can name an environment variable: letters, digits and `_`, no digit first.
pub fn is_variable(name: &str) -> bool {
    let start = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    start && name.len() <= 128 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The longest text that may be a slip: comparing costs its length times the candidate's.
const LONGEST: usize = 64;

/// The one of `candidates` that `text` was probably meant to be.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if text.len() > LONGEST {
        return None;
    }
    // Case and dashes are another tool's style, not a mistake of spelling.
    let text = text.to_ascii_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&text, candidate), *candidate))
        // More than a third wrong is another word, and a bad hint is worse than none.
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
        .or_else(|| candidates.iter().find(|whole| text.len() > 2 && whole.starts_with(&text)).copied())
}

/// A small kind of file, for tests.
#[cfg(test)]
pub(super) static SMALL: Schema = {
    static ROOT: Section = Section {
        name: "",
        head: "the file",
        form: "its keys",
        about: "",
        keys: &Key::all_named(["url", "first_token_timeout", "keys_file", "token_file", "key_env"]),
        later: &[],
    };
    Schema { root: &ROOT, sections: &[&ROOT], variables: &["key_env"], needless: |_, _| None, instead: |_, _| None }
};
