//! What a kind of file may hold: its sections, their keys, and, for a name that is none of these, what was probably meant.
//! Says nothing of values.

/// The keys of one section of a file.
#[derive(Debug)]
pub struct Section {
    /// As it is written: `listen`, `pools.arms`; empty for the file itself.
    pub name: &'static str,
    /// How to write its head.
    pub head: &'static str,
    /// How to write it, by example.
    pub form: &'static str,
    /// What it may hold.
    pub keys: &'static [&'static str],
    /// What a later version will know.
    pub later: &'static [&'static str],
}

/// What one kind of file may hold.
#[derive(Debug)]
pub struct Schema {
    /// The file itself.
    pub root: &'static Section,
    /// All its sections, with `root`.
    pub sections: &'static [&'static Section],
    /// Keys whose value is the name of an environment variable: a report shows it, where it is one.
    pub variables: &'static [&'static str],
    /// Why a key that one may expect (section, key) is not here.
    pub needless: fn(&str, &str) -> Option<&'static str>,
    /// What to write in place of an unknown key (section, key), where that is better known than by its spelling.
    pub instead: fn(&str, &str) -> Option<&'static str>,
}

impl Schema {
    /// Whether `key` is known, or will be, in some section.
    #[must_use]
    pub fn is_key(&self, key: &str) -> bool {
        self.sections.iter().any(|section| section.keys.contains(&key) || section.later.contains(&key))
    }

    /// What was probably meant by the unknown `key` in `section`, as a hint.
    #[must_use]
    pub fn meant(&self, section: &Section, key: &str) -> String {
        if let Some(instead) = (self.instead)(section.name, key) {
            return instead.to_owned();
        }
        if let Some(near) = nearest(key, section.keys) {
            return format!("did you mean `{near}`?");
        }
        if let Some(other) = self.sections.iter().find(|other| !other.name.is_empty() && other.keys.contains(&key)) {
            return format!("`{key}` belongs in {}", other.head);
        }
        let known = section.keys.join(", ");
        format!("{} may hold {known}", section.head)
    }
}

/// The longest text that may be a slip: comparing costs its length times the candidate's.
const LONGEST: usize = 64;

/// The one of `candidates` that `text` was probably meant to be.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if text.len() > LONGEST {
        return None;
    }
    let text = text.to_ascii_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&text, candidate), *candidate))
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
        keys: &["url", "first_token_timeout", "keys_file", "token_file", "key_env"],
        later: &[],
    };
    Schema { root: &ROOT, sections: &[&ROOT], variables: &["key_env"], needless: |_, _| None, instead: |_, _| None }
};
