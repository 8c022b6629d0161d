//! The command that made a run, as its head keeps it: a line that a shell splits into the words of the command, and its options. Pure.

/// The words as one line that a shell splits into the same words.
#[must_use]
pub fn shell_line(words: impl IntoIterator<Item = String>) -> String {
    let words: Vec<String> = words.into_iter().collect();
    // only a word with a nul byte cannot be quoted, and no argument of a process has one
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

/// The words of a line; none where a quote is not closed.
#[must_use]
pub fn words(line: &str) -> Option<Vec<String>> {
    shlex::split(line)
}

/// The value of an option, `--name value` or `--name=value`; the last one counts.
#[must_use]
pub fn option_of<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let joined = format!("{name}=");
    let mut found = None;
    for (place, word) in words.iter().enumerate() {
        if word == name {
            found = words.get(place + 1).map(String::as_str);
        } else if let Some(value) = word.strip_prefix(&joined) {
            found = Some(value);
        }
    }
    found
}

/// The words with another value for an option, which goes to the end where it is not there.
#[must_use]
pub fn with_option(words: Vec<String>, name: &str, value: &str) -> Vec<String> {
    let joined = format!("{name}=");
    let mut out = Vec::with_capacity(words.len() + 2);
    let mut skip = false;
    for word in words {
        if std::mem::take(&mut skip) || word.starts_with(&joined) {
            continue;
        }
        skip = word == name;
        if !skip {
            out.push(word);
        }
    }
    out.extend([name.to_owned(), value.to_owned()]);
    out
}

/// A line for a terminal of `width` columns: broken before options, with backslashes, so that it can still be pasted into a shell.
#[must_use]
pub fn broken(line: &str, width: usize) -> String {
    let Some(words) = words(line) else { return line.to_owned() };
    let (mut out, mut used) = (String::new(), 0);
    let mut rest = words.into_iter().peekable();
    while let Some(word) = rest.next() {
        let mut part = shell_line([word.clone()]);
        // An option and its value stay on one line.
        if word.starts_with("--")
            && let Some(value) = rest.next_if(|next| !next.starts_with("--"))
        {
            part = shell_line([word, value]);
        }
        let length = part.chars().count();
        if used > 0 && used + 1 + length + 2 > width {
            out.push_str(" \\\n    ");
            used = 4;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(&part);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_replaced_in_both_forms() {
        let line = "forebay bench http://h:1 --seed 3 --slo=ttft=1s --seed 4 --arm 'a b'";
        let found = words(line).unwrap();
        assert_eq!((option_of(&found, "--seed"), option_of(&found, "--slo")), (Some("4"), Some("ttft=1s")));
        assert_eq!((option_of(&found, "--arm"), option_of(&found, "--start")), (Some("a b"), None));
        let next = shell_line(with_option(with_option(found, "--seed", "5"), "--slo", "ttft=2s"));
        assert_eq!(next, "forebay bench http://h:1 --arm 'a b' --seed 5 --slo 'ttft=2s'");
    }

    #[test]
    fn a_broken_line_fits_and_a_shell_reads_the_same_words() {
        let line = "forebay bench http://127.0.0.1:8001 --num-prompts 300 --input-len 100 --output-len 600 --arm 'tp 2' --gpus 2 \
                    --output tp2.jsonl --seed 2 --epoch 1";
        let shown = broken(line, 76);
        assert!(shown.lines().count() > 1 && shown.lines().all(|line| line.chars().count() <= 76), "{shown}");
        assert_eq!(words(&shown.replace("\\\n", "")), words(line));
    }
}
