//! A comparison as one HTML file: nothing is fetched and nothing runs, so it can be mailed, archived and printed. Text from rows
//! and files is escaped by maud. The charts are SVG within it. Pure.

mod axis;
mod chart;
mod checks;
mod plots;

pub use chart::DrawError;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::text;
use crate::compare::figure::Figure;
use crate::compare::format;
use crate::compare::model::{Arm, Cell, Comparison, Epoch, Measured, Point};
use crate::compare::verdict::{Pair, Verdict};
use crate::rows::wall_clock::day;
use plots::{Plot, Plots, Sweep};

const STYLE: &str = include_str!("style.css");

/// The origin of a report, as far as its rows do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The experiment's name, if there was one.
    pub name: Option<String>,
    /// The command line.
    pub command: String,
    /// The text of the experiment's file, as it was written: variables stand in it by name.
    pub experiment: Option<String>,
    /// The experiment's record of the machine.
    pub machine: Option<String>,
}

/// The report.
///
/// # Errors
/// plotters refused to draw, which it does for no comparison that we know of.
pub fn html(comparison: &Comparison, made: &Made) -> Result<String, DrawError> {
    let title = title(comparison, made);
    let plots = Plots::of(comparison);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(chart::style())) }
            }
            body {
                header {
                    h1 { (title) }
                    (checks::warnings(comparison, true))
                    (verdicts(comparison))
                    (checks::warnings(comparison, false))
                }
                main {
                    section { h2 { "Can it be trusted?" } (checks::table(comparison)) }
                    (sweeps(comparison, &plots)?)
                    @for (number, point) in comparison.points.iter().enumerate() {
                        (load(number, point, &plots, comparison.points.len() > 1)?)
                    }
                    section {
                        h2 { "What was run" }
                        (arms(comparison))
                        (epochs(comparison))
                        (origin(made))
                    }
                    section { h2 { "How figures are defined" } (definitions()) }
                }
                footer { p { "Made by forebay " (env!("CARGO_PKG_VERSION")) ". Nothing in this file is fetched or run." } }
            }
        }
    };
    Ok(page.into_string())
}

/// The experiment or else the arms, the day on which it was measured and the host, as far as they are known.
fn title(comparison: &Comparison, made: &Made) -> String {
    let arms: Vec<&str> = comparison.arms.iter().map(|arm| arm.name.as_str()).collect();
    let name = made.name.clone().unwrap_or_else(|| arms.join(" / "));
    let day = comparison.began_ms.map(day);
    [Some(name), day, comparison.host.clone()].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The verdicts, each with what bound the arms.
fn verdicts(comparison: &Comparison) -> Markup {
    let class = |pair: &Pair| match pair.verdict {
        Verdict::Winner { .. } => "winner",
        Verdict::NoDifference { .. } | Verdict::NotJudged { .. } => "open",
    };
    html! {
        @for (number, point) in comparison.points.iter().enumerate() {
            @for pair in &point.pairs { p class={ "verdict " (class(pair)) } { (format::verdict(pair, point)) } }
            @if let Some(best) = format::best(point) { p.verdict.open { (best) } }
            @if comparison.points.len() == 1 { (why(point)) }
            @else if !point.pairs.is_empty() { p.more { a href=(format!("#load-{number}")) { "Figures and reasons " (format::load(point.offered)) } } }
        }
    }
}

fn why(point: &Point) -> Markup {
    let lines = text::diagnoses(point);
    html! {
        @if !lines.is_empty() {
            div.why {
                h3 { "Why" }
                @if let Some(sentence) = format::contrast(point) { p.contrast { (sentence) } }
                @for line in lines { p { (line) } }
            }
        }
    }
}

/// Renders the charts of what changes with the load.
fn sweeps(comparison: &Comparison, plots: &Plots) -> Result<Markup, DrawError> {
    let sweeps = Sweep::all(comparison);
    let drawn = sweeps.iter().map(|sweep| plots.of_sweep(comparison, sweep)).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        @if !(comparison.crossovers.is_empty() && drawn.is_empty()) {
            section {
                h2 { "Over the loads" }
                (crossovers(comparison))
                @for (number, drawn) in drawn.iter().enumerate() { (figures(&format!("sweep-{number}"), drawn)) }
            }
        }
    })
}

/// Renders where the better arm changes, arm by arm.
fn crossovers(comparison: &Comparison) -> Markup {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for crossover in &comparison.crossovers {
        let pair = (crossover.arm.as_str(), crossover.baseline.as_str());
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let of_pair = |(arm, baseline): (&str, &str)| -> Vec<String> {
        let own = comparison.crossovers.iter().filter(|one| one.arm == arm && one.baseline == baseline);
        own.map(|crossover| format::sentence_case(&format::crossover(crossover))).collect()
    };
    html! {
        @for pair in pairs {
            h3 { "Where the better of " (pair.0) " and " (pair.1) " changes" }
            ul.crossovers { @for line in of_pair(pair) { li { (line) } } }
        }
    }
}

fn load(number: usize, point: &Point, plots: &Plots, with_reasons: bool) -> Result<Markup, DrawError> {
    let id = format!("load-{number}");
    let drawn = plots.of_point(point)?;
    Ok(html! {
        section id=(id) {
            h2 { (format::sentence_case(&format::heading(point))) }
            @if with_reasons { (why(point)) }
            (figures(&id, &drawn))
            (compared(point))
            (measured(point))
            @for note in text::footnotes(point) { p.note { (note) } }
        }
    })
}

fn figures(id: &str, plots: &[Plot]) -> Markup {
    html! {
        div.plots {
            @for (number, plot) in plots.iter().enumerate() {
                @let (title, desc) = (format!("{id}-{number}-title"), format!("{id}-{number}-desc"));
                figure {
                    figcaption { strong { (plot.title) } " " span.note { (plot.caption) } }
                    ul.key { @for (arm, swatch) in &plot.key { li { (PreEscaped(hidden(swatch))) (arm) } } }
                    (PreEscaped(titled(&plot.svg, &title, &desc, plot)))
                }
            }
        }
    }
}

/// A drawing that says nothing which the text beside it does not.
fn hidden(svg: &str) -> String {
    svg.replacen("<svg ", "<svg aria-hidden=\"true\" ", 1)
}

/// A drawing with its name and its words.
fn titled(svg: &str, title: &str, desc: &str, plot: &Plot) -> String {
    let (open, rest) = svg.split_once('>').unwrap_or((svg, ""));
    let words = html! { title id=(title) { (plot.title) } desc id=(desc) { (plot.description) } };
    format!("{open} role=\"img\" aria-labelledby=\"{title}\" aria-describedby=\"{desc}\">{}{rest}", words.into_string())
}

/// Each figure beside the baseline's.
fn compared(point: &Point) -> Markup {
    let rows = text::ratios(point);
    html! { @if rows.len() > 1 { (table("Compared, over epochs", &rows[0], &[("", &rows[1..])])) } }
}

/// Each arm's figures.
fn measured(point: &Point) -> Markup {
    let over_epochs: Vec<Vec<String>> = Figure::ALL
        .into_iter()
        .filter(|figure| point.cells.iter().any(|cell| text::measured(cell, *figure).is_some()))
        .map(|figure| {
            let cells = point.cells.iter().map(|cell| with_interval(cell, figure));
            [figure.name().to_owned()].into_iter().chain(cells).collect()
        })
        .collect();
    let all = text::of_all_requests(point);
    let groups = [("of all requests together", &all[..]), ("means of epochs (95 % interval)", &over_epochs[..])];
    table("Each arm by itself", &text::heads(point), &groups)
}

fn with_interval(cell: &Cell, figure: Figure) -> String {
    let value = text::measured(cell, figure).unwrap_or_else(|| "-".to_owned());
    let of_figure = |one: &&Measured| one.figure == figure;
    match cell.figures.iter().find(of_figure).and_then(|one| one.interval) {
        Some(ends) => format!("{value} ({} to {})", format::value(figure, ends.low), format::value(figure, ends.high)),
        None => value,
    }
}

/// A table with a head, and groups of rows of which the first cell is the row's name.
fn table(caption: &str, head: &[String], groups: &[(&str, &[Vec<String>])]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr { @for cell in head { @if cell.is_empty() { td {} } @else { th scope="col" { (cell) } } } } }
                @for (name, rows) in groups {
                    tbody {
                        @if !name.is_empty() { tr { th scope="rowgroup" colspan=(head.len()) { (name) } } }
                        @for row in *rows {
                            tr {
                                @for (column, cell) in row.iter().enumerate() {
                                    @if column == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn arms(comparison: &Comparison) -> Markup {
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "not known".to_owned());
    let row = |arm: &Arm| {
        vec![
            arm.name.clone(),
            or_unknown(arm.gpus.map(|gpus| gpus.to_string())),
            or_unknown(arm.replicas.map(|replicas| replicas.to_string())),
            or_unknown(arm.max_num_seqs.map(|cap| cap.to_string())),
            arm.price_per_hour.map_or_else(|| "not given".to_owned(), |price| price.to_string()),
            if arm.model.is_empty() { "not known".to_owned() } else { arm.model.clone() },
            if arm.simulated { "simulated" } else { "real" }.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = comparison.arms.iter().map(row).collect();
    let head =
        ["arm", "GPUs", "servers", "max_num_seqs of each", "price an hour", "model", "servers are"].map(str::to_owned);
    html! {
        (table("Arms, the baseline first", &head, &[("", &rows)]))
        @if let Some(slo) = comparison.slo { p { "A request is served well if it meets " (slo) "." } }
    }
}

/// Epochs in the order in which they were run.
fn epochs(comparison: &Comparison) -> Markup {
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let row = |point: &Point, cell: &Cell, epoch: &Epoch| {
        vec![
            (epoch.epoch + 1).to_string(),
            cell.arm.clone(),
            format::load(point.offered),
            number(epoch.block.map(|block| block + 1)),
            number(epoch.start.map(|start| start + 1)),
            epoch.summary.requests.to_string(),
            epoch.summary.failed.to_string(),
            format!("{:.2}", epoch.summary.duration_s),
        ]
    };
    let mut rows: Vec<(u32, Vec<String>)> = Vec::new();
    for point in &comparison.points {
        for cell in &point.cells {
            rows.extend(cell.epochs.iter().map(|epoch| (epoch.epoch, row(point, cell, epoch))));
        }
    }
    rows.sort_by_key(|(epoch, _)| *epoch);
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    let head = ["epoch", "arm", "load", "block", "start", "answered", "failed", "seconds"].map(str::to_owned);
    html! {
        details { summary { "The " (rows.len()) " epochs in their order" } (table("Epochs", &head, &[("", &rows)])) }
    }
}

fn origin(made: &Made) -> Markup {
    html! {
        @if !made.command.is_empty() { h3 { "Command" } pre { code { (made.command) } } }
        @if let Some(text) = &made.experiment { h3 { "Experiment" } pre { code { (text) } } }
        @if let Some(text) = &made.machine { h3 { "Machine" } pre { code { (text) } } }
    }
}

fn definitions() -> Markup {
    let terms = [
        ("TTFT", "From sending a request to the first event of its stream that has a choice."),
        (
            "TPOT",
            "Of a request: (E2E − TTFT) ÷ (output tokens − 1). Its eval rate is 1000 ÷ TPOT in ms; the P99 is of the slow side.",
        ),
        ("ITL", "The time between two events of a stream, over all events of all requests."),
        ("E2E", "From sending a request to its last event that has a choice."),
        (
            "tokens/s, requests/s",
            "Over the time from the first sending to the last end; of requests that got a whole answer. An arm that keeps up with a rate \
            (answers at 0.97 of it or more, no trend of TTFT, under 1 % failed) has the load's, and is not compared by it.",
        ),
        ("goodput", "Requests a second that met every limit of the SLO; a failed request met none."),
        (
            "per GPU, per dollar",
            "Divided by the GPUs that the arm occupies, busy or not; tokens of an hour by the price of an hour.",
        ),
        (
            "epoch",
            "One run of one arm, or a block of a live split: the unit of the statistics, since requests of one run are not independent.",
        ),
        (
            "start",
            "A start of the arm's servers: what the statistics count as one. Runs of one start resemble each other.",
        ),
        (
            "ratio, 95 % interval",
            "Of geometric means of starts, by a t on logarithms; from five starts a side, or six that link both arms, an exact rank test \
            takes part: the ratio is then the median of the ratios of starts, and the interval holds what neither test rejects.",
        ),
        (
            "winner",
            "Named where three starts a side or more were run in turns and as many as planned, no check failed, the interval of the ratio \
            excludes 1, the difference is more than 2 %, and so it stays after Holm's adjustment.",
        ),
        (
            "the figure that decides",
            "With all requests at once or a fixed number under way: output tokens/s per GPU. At an offered rate: the share \
            that missed the SLO, or without one P95 TTFT, a failed request counting as infinite. The others are adjusted for being many \
            (Holm).",
        ),
    ];
    html! { dl { @for (term, meaning) in terms { dt { (term) } dd { (meaning) } } } }
}
