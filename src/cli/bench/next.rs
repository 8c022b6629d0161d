//! What follows a run of `forebay bench`: where its rows are, and what a comparison still takes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;

use forebay_lab::rows::command::shell_line;
use forebay_lab::rows::row_file::{self, RunRows};
use forebay_lab::rows::table::wrapped;

use super::Args;

/// Starts of each arm's servers from which `forebay compare` names a winner.
const STARTS: usize = 3;

/// The command as it may be given again, for the rows; none where a header may hold a secret.
pub(super) fn command(args: &Args) -> Option<String> {
    if !args.header.is_empty() {
        return None;
    }
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    Some(shell_line(["forebay".to_owned()].into_iter().chain(words)))
}

/// Says what to do with these runs.
pub(super) fn text(args: &Args, runs: &[RunRows]) -> String {
    let Some(path) = &args.output else {
        return wrapped(
            "\nTo compare these servers with others, add --arm NAME --output FILE.jsonl, and measure the others in the same way.",
        ) + "\n";
    };
    let file = path.display();
    // Of all runs in the file, since a file is one arm's over several starts.
    let rows = File::open(path).ok().and_then(|file| row_file::read(BufReader::new(file)).ok()).unwrap_or_default();
    let whole = || rows.iter().filter(|run| run.end.is_some()).filter_map(|run| run.head.as_ref());
    let starts: BTreeSet<u32> = whole().filter_map(|head| head.start).collect();
    let arm = runs.iter().find_map(|run| run.head.as_ref()?.arm.clone());
    let of = arm.map_or_else(String::new, |arm| format!(" of {arm}"));
    let count = match starts.len() {
        1 => format!("One start{of}"),
        count => format!("{count} starts{of}"),
    };
    let text = if starts.len() < STARTS {
        format!(
            "\n{count} in {file}. A winner takes {STARTS} starts of each arm's servers, in turns. Measure the other arm now, with its own \
             --output. `forebay compare {file} OTHER.jsonl` then says what to run next."
        )
    } else {
        format!("\n{count} in {file}. `forebay compare {file} OTHER.jsonl` compares them with another arm's.")
    };
    wrapped(&text) + "\n"
}
