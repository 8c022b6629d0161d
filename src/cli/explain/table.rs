//! An explanation as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Note;
use forebay_core::routing::decision::Considered;
use forebay_core::routing::explain::{Explained, Verdict, grouped, seconds};
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::units::BackendId;
use forebay_fleet::recorded::{RecordedBackend, RecordedPool};

/// What is shown.
pub(super) struct Shown<'a> {
    pub(super) pool: &'a RecordedPool,
    pub(super) facts: &'a RequestFacts,
    pub(super) explained: &'a Explained,
    pub(super) notes: &'a [Note],
}

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

impl Shown<'_> {
    /// The table, the choice and the reason.
    pub(super) fn text(&self) -> String {
        let mut text = format!("pool {}, {}: {}\n\n", self.pool.model, self.pool.policy, self.request());
        let mut lines = vec![HEAD.map(str::to_owned)];
        lines.extend(self.rows().map(|(arm, backend, verdict, row)| self.cells(arm, backend, verdict, row)));
        let widths: Vec<usize> =
            (0..HEAD.len()).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
                if WORDS.contains(&at) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        _ = writeln!(text, "\n{}", self.why());
        for Note(note) in self.notes {
            _ = writeln!(text, "note: {note}");
        }
        text
    }

    /// The same for a machine.
    pub(super) fn json(&self) -> String {
        let backends: Vec<Value> = self
            .rows()
            .map(|(arm, backend, verdict, row)| {
                json!({
                    "id": backend.id.to_string(), "url": backend.url, "arm": self.arm(arm),
                    "state": backend.state, "state_reason": backend.reason, "verdict": verdict,
                    "queue_depth": backend.scrape().and_then(|scrape| scrape.queue_depth),
                    "scrape_age_seconds": backend.scrape().map(|scrape| scrape.age_seconds),
                    "scrape_stale": backend.scrape().map(|scrape| scrape.stale),
                    "predicted_ttft_seconds": row.terms.ttft(), "score": row.terms.score(), "row": row,
                })
            })
            .collect();
        let facts = self.facts;
        let whole = json!({
            "pool": self.pool.model, "policy": self.pool.policy,
            "request": {
                "prompt_tokens_estimated": facts.est_tokens, "sequences": facts.sequences, "kind": facts.kind,
                "arm": self.arm(facts.arm),
            },
            "decision": self.explained.decision, "why": self.why(), "backends": backends,
            "notes": self.notes.iter().map(|Note(note)| note).collect::<Vec<_>>(),
        });
        format!("{whole:#}\n")
    }

    fn rows(&self) -> impl Iterator<Item = (ArmIndex, &RecordedBackend, Verdict, &Considered)> {
        let members = self.pool.backends().zip(&self.explained.members);
        members.map(|((arm, backend), (verdict, row))| (arm, backend, *verdict, row))
    }

    fn arm(&self, index: ArmIndex) -> &str {
        self.pool.arms.get(usize::from(index.0)).map_or("?", |arm| &arm.name)
    }

    fn request(&self) -> String {
        let kind = match self.facts.kind {
            Kind::Stream => "streamed",
            Kind::Unary => "not streamed",
            Kind::NoDecode => "no decoding",
            Kind::Light => "not for the engine",
        };
        let sequences = match self.facts.sequences {
            0 | 1 => String::new(),
            several => format!(", {several} sequences"),
        };
        let tokens = grouped(f64::from(self.facts.est_tokens));
        format!("{tokens} prompt tokens (estimated){sequences}, {kind}, arm {}", self.arm(self.facts.arm))
    }

    fn cells(&self, arm: ArmIndex, backend: &RecordedBackend, verdict: Verdict, row: &Considered) -> [String; 18] {
        let unknown = || "?".to_owned();
        let scrape = backend.scrape();
        let terms = &row.terms;
        [
            if verdict == Verdict::Chosen { "*" } else { "" }.to_owned(),
            format!("{} {}", backend.id, backend.url.trim_start_matches("http://")),
            self.arm(arm).to_owned(),
            backend.state.clone(),
            format!("{}+{}", row.prefilling, row.decoding),
            grouped(row.queued_tokens as f64),
            scrape.and_then(|scrape| scrape.queue_depth).map_or_else(unknown, |depth| format!("{depth:.0}")),
            scrape.map_or("never".to_owned(), |scrape| {
                format!("{:.1} s{}", scrape.age_seconds, if scrape.stale { " stale" } else { "" })
            }),
            format!("{:.2}", terms.k),
            format!("{:.2}", terms.v),
            grouped(f64::from(row.matched)),
            seconds(terms.ttft()),
            seconds(terms.step),
            seconds(terms.queue),
            seconds(terms.prompt),
            seconds(terms.kv_wait),
            seconds(terms.others + terms.redundancy + terms.eviction),
            verdict_in_words(verdict, backend, row),
        ]
    }

    fn why(&self) -> String {
        let name = |id: BackendId| {
            let found = self.pool.backends().find(|(_, backend)| backend.id == id);
            found.map_or(id.to_string(), |(_, one)| format!("{id} ({})", one.url.trim_start_matches("http://")))
        };
        match &self.explained.decision {
            Some(decision) => self.explained.trace.why_named(decision, &name),
            None if self.explained.members.iter().any(|(verdict, _)| *verdict == Verdict::Full) => {
                "no backend has room: the request would wait for one".to_owned()
            }
            None => "no backend may have the request".to_owned(),
        }
    }
}

fn verdict_in_words(verdict: Verdict, backend: &RecordedBackend, row: &Considered) -> String {
    let because = |words: &str| match &backend.reason {
        Some(reason) => format!("{words}: {reason}"),
        None => words.to_owned(),
    };
    match verdict {
        Verdict::Chosen => "chosen".to_owned(),
        Verdict::Compared => "compared".to_owned(),
        Verdict::BackingOff if row.open_for > 0.0 => format!("left alone for {}", seconds(row.open_for)),
        Verdict::BackingOff => "left alone: its one trial is out".to_owned(),
        Verdict::Full => "at its limit".to_owned(),
        Verdict::OtherArm => "of another arm".to_owned(),
        Verdict::Out => because("out"),
        Verdict::Misconfigured => because("misconfigured"),
        Verdict::Drained => because("drained"),
        Verdict::Tried => "does not list the model".to_owned(),
        Verdict::NotPinned => "the request is bound to another".to_owned(),
    }
}
