//! An explanation as a table.

use std::fmt::Write as _;

use forebay_core::routing::explain::Fate;
use forebay_core::routing::facts::Kind;
use forebay_core::terminal::{WIDTH, cut, wrapped};
use forebay_core::units::{brief_seconds, grouped};
use forebay_fleet::view::explain::{ExplainedBackend, Explanation, WeighedRequest};

const HEAD: [&str; 18] = [
    "",
    "backend",
    "arm",
    "state",
    "p+n",
    "queued",
    "depth",
    "scraped",
    "k",
    "v",
    "matched",
    "TTFT",
    "= step",
    "+ queue",
    "+ prompt",
    "+ kv wait",
    "others",
    "",
];
/// Columns of words, which begin at the left; numbers end at the right.
const WORDS: [usize; 5] = [0, 1, 2, 3, 17];
/// The columns of each part: what becomes of the request, what each backend has to do, and what its TTFT is made of. All of them in
/// one table would be twice as wide as a terminal.
const PARTS: [&[usize]; 3] = [&[0, 1, 2, 11, 17], &[0, 1, 3, 4, 5, 6, 7, 10], &[0, 1, 11, 12, 13, 14, 15, 16]];
/// The columns that are cut where the line is too wide, widest first: names that a user chose, and reasons.
const CUT: [usize; 3] = [17, 1, 2];

/// The table, the choice and the reason.
pub(super) fn text(explanation: &Explanation) -> String {
    let asked = format!("pool {}, {}: {}", explanation.pool, explanation.policy, request(&explanation.request));
    let mut text = format!("{}\n\n", wrapped(&asked));
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(explanation.backends.iter().map(cells));
    for columns in PARTS {
        let widths = widths(&lines, columns);
        for line in &lines {
            let cells = columns.iter().zip(&widths).map(|(&at, &width)| {
                let cell = cut(&line[at], width);
                if WORDS.contains(&at) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        text.push('\n');
    }
    let rates = explanation.backends.iter().map(|one| (&one.id, one.row.terms.k, one.row.terms.v));
    let rates: Vec<String> = rates.map(|(id, k, v)| format!("{id} k {k:.2} v {v:.2}")).collect();
    _ = writeln!(text, "{}", wrapped(&format!("learned: {}", rates.join(", "))));
    _ = writeln!(text, "\n{}", wrapped(&explanation.why));
    for note in &explanation.notes {
        _ = writeln!(text, "{}", wrapped(&format!("note: {note}")));
    }
    text
}

/// The width of each of these columns, so that a line fits a terminal.
fn widths(lines: &[[String; 18]], columns: &[usize]) -> Vec<usize> {
    let longest = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let mut widths: Vec<usize> = columns.iter().map(|&at| longest(at)).collect();
    for wide in CUT {
        let over = (widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)).saturating_sub(WIDTH);
        if let Some(place) = columns.iter().position(|&at| at == wide) {
            // Twelve characters tell which backend or arm it is.
            widths[place] = widths[place].saturating_sub(over).max(widths[place].min(12));
        }
    }
    widths
}

fn request(request: &WeighedRequest) -> String {
    let kind = match request.kind {
        Kind::Stream => "streamed",
        Kind::Unary => "not streamed",
        Kind::NoDecode => "no decoding",
        Kind::Light => "not for the engine",
    };
    let sequences = match request.sequences {
        0 | 1 => String::new(),
        several => format!(", {several} sequences"),
    };
    let tokens = grouped(f64::from(request.prompt_tokens_estimated));
    format!("{tokens} prompt tokens (estimated){sequences}, {kind}, arm {}", request.arm)
}

fn cells(backend: &ExplainedBackend) -> [String; 18] {
    let (row, terms) = (&backend.row, &backend.row.terms);
    let scraped = backend.scrape_age_seconds.map_or("never".to_owned(), |age| {
        format!("{age:.1} s{}", if backend.scrape_stale == Some(true) { " stale" } else { "" })
    });
    [
        if backend.verdict == Fate::Chosen { "*" } else { "" }.to_owned(),
        format!("{} {}", backend.id, backend.url.trim_start_matches("http://")),
        backend.arm.clone(),
        backend.state.clone(),
        format!("{}+{}", row.prefilling, row.decoding),
        grouped(row.queued_tokens as f64),
        backend.queue_depth.map_or("?".to_owned(), |depth| format!("{depth:.0}")),
        scraped,
        format!("{:.2}", terms.k),
        format!("{:.2}", terms.v),
        grouped(f64::from(row.matched)),
        brief_seconds(terms.ttft()),
        brief_seconds(terms.step),
        brief_seconds(terms.queue),
        brief_seconds(terms.prompt),
        brief_seconds(terms.kv_wait + terms.slot_wait),
        brief_seconds(terms.others + terms.redundancy + terms.eviction),
        fate(backend),
    ]
}

fn fate(backend: &ExplainedBackend) -> String {
    let because = |words: &str| match &backend.state_reason {
        Some(reason) => format!("{words}: {reason}"),
        None => words.to_owned(),
    };
    match backend.verdict {
        Fate::Chosen => "chosen".to_owned(),
        Fate::Compared => "compared".to_owned(),
        Fate::BackingOff if backend.row.open_for > 0.0 => {
            format!("left alone for {}", brief_seconds(backend.row.open_for))
        }
        Fate::BackingOff => "left alone: its one trial is out".to_owned(),
        Fate::Full => "at its limit".to_owned(),
        Fate::OtherArm => "of another arm".to_owned(),
        Fate::Out => because("out"),
        Fate::Misconfigured => because("misconfigured"),
        Fate::Drained => because("drained"),
        Fate::Tried => "does not list the model".to_owned(),
        Fate::NotPinned => "the request is bound to another".to_owned(),
    }
}
