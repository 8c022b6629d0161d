//! Commands as they are written in an experiment: split as a shell would, without a shell, and with `${NAME}` filled in from the
//! environment, so that one file runs on machines whose folders differ. Pure.

/// The reason why a text cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordError {
    /// A quote that is not closed.
    #[error("a quote is not closed")]
    Quote,
    /// Nothing is there.
    #[error("there is no command")]
    Empty,
    /// A variable that is not set.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// `${` without its end, or with no name in it.
    #[error("`${{` has no name and `}}` behind it")]
    Open,
}

/// The function that looks up a variable of the environment.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The words of a command. A variable's value is never split, whatever is in it.
pub(super) fn command(text: &str, env: Env<'_>) -> Result<Vec<String>, WordError> {
    let words = shlex::split(text).ok_or(WordError::Quote)?;
    if words.is_empty() {
        return Err(WordError::Empty);
    }
    words.iter().map(|word| fill(word, env)).collect()
}

/// The text with each `${NAME}` and `${NAME:-default}` filled in.
pub(super) fn fill(text: &str, env: Env<'_>) -> Result<String, WordError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let end = inside.find('}').ok_or(WordError::Open)?;
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(WordError::Open);
        }
        let value = env(name).or_else(|| default.map(str::to_owned));
        out.push_str(&value.ok_or_else(|| WordError::Unset(name.to_owned()))?);
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "DIR").then(|| "/a b".to_owned())
    }

    #[test]
    fn a_command_is_split_and_a_value_is_not() {
        let words = command("run '${DIR}/x y' ${DIR} --n=${N:-3}\n  \"q\"", &env).unwrap();
        assert_eq!(words, ["run", "/a b/x y", "/a b", "--n=3", "q"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(command("run 'x", &env), Err(WordError::Quote));
        assert_eq!(command("  ", &env), Err(WordError::Empty));
        assert_eq!(fill("${NOPE}", &env).unwrap_err().to_string(), "the environment variable NOPE is not set");
        assert_eq!(fill("${DIR", &env), Err(WordError::Open));
        assert_eq!(fill("${}", &env).unwrap_err().to_string(), "`${` has no name and `}` behind it");
    }
}
