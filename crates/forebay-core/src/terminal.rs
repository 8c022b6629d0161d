//! Text for a terminal of 80 columns: lines broken between words, words cut. Pure.

/// The columns of a terminal that text is made for.
pub const WIDTH: usize = 80;

/// A text of at most so many characters.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Each line of a text, broken between words so that it fits a terminal; what follows a break is indented like the line.
#[must_use]
pub fn wrapped(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(wrapped_line).collect();
    lines.join("\n")
}

fn wrapped_line(line: &str) -> String {
    let indent: String = line.chars().take_while(|char| *char == ' ').collect();
    let mut out = indent.clone();
    let mut used = indent.len();
    for (place, word) in line.split_whitespace().enumerate() {
        let length = word.chars().count();
        if place > 0 && used + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(&indent);
            used = indent.len();
        } else if place > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_keep_their_indent() {
        let long = "  word".to_owned() + &" word".repeat(40);
        let text = wrapped(&long);
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(text.lines().all(|line| line.starts_with("  w")) && text.split_whitespace().count() == 41);
        assert_eq!(wrapped("\na  b\n"), "\na b\n");
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
    }
}
