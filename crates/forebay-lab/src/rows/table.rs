//! Tables on a terminal: the fourteen rows of the benchmark that this project answers, in its order and names, and any rows in
//! aligned columns. Pure.

use super::summary::Summary;
pub use forebay_core::terminal::{WIDTH, cut, wrapped};

/// The rows, in order: names and figures. A figure that there is no request for is a dash.
#[must_use]
pub fn benchmark_rows(summary: &Summary) -> [(&'static str, String); 14] {
    let two = |value: f64| format!("{value:.2}");
    let maybe = |value: Option<f64>| number(value, 2);
    let rate = |tpot: Option<f64>| maybe(tpot.filter(|ms| *ms > 0.0).map(|ms| 1000.0 / ms));
    [
        ("requests", summary.requests.to_string()),
        ("duration s", two(summary.duration_s)),
        ("input tokens", summary.input_tokens.to_string()),
        ("generated tokens", summary.output_tokens.to_string()),
        ("requests/s", two(summary.requests_per_second())),
        ("input tokens/s", two(summary.input_tokens_per_second())),
        ("output tokens/s", two(summary.output_tokens_per_second())),
        ("total tokens/s", two(summary.input_tokens_per_second() + summary.output_tokens_per_second())),
        ("median TTFT ms", maybe(summary.ttft_ms.p50)),
        ("P99 TTFT ms", maybe(summary.ttft_ms.p99)),
        ("median TPOT ms", maybe(summary.tpot_ms.p50)),
        ("P99 TPOT ms", maybe(summary.tpot_ms.p99)),
        ("median eval rate tokens/s", rate(summary.tpot_ms.p50)),
        ("P99 eval rate tokens/s", rate(summary.tpot_ms.p99)),
    ]
}

/// A figure with so many digits after the point; a dash if there is none.
#[must_use]
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Rows as text: the first column to the left, the others to the right, two spaces between. The first row is the head.
#[must_use]
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            out.push_str(&rules.join("  "));
            out.push('\n');
        }
    }
    out
}

/// Rows as text, as wide as a terminal: what does not fit beside the first column follows in tables of their own. Cells of the head
/// are cut where one of them alone would be too wide.
#[must_use]
pub fn fitting(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = String::new();
    let mut from = 1;
    while from < columns {
        let (mut to, mut used) = (from, width(0));
        while to < columns && (to == from || used + 2 + width(to) <= WIDTH) {
            used += 2 + width(to);
            to += 1;
        }
        let part: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let cells = row.get(from..to.min(row.len())).unwrap_or_default();
                row.first().cloned().into_iter().chain(cells.iter().map(|cell| cut(cell, WIDTH / 2))).collect()
            })
            .collect();
        out.push_str(if from == 1 { "" } else { "\n" });
        out.push_str(&aligned(&part));
        from = to;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::record::tests::record;

    #[test]
    fn the_fourteen_rows_have_their_order_and_names() {
        let rows = benchmark_rows(&Summary::of([&record(0)]));
        let text: Vec<String> = rows.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(text[0], "requests: 1");
        assert_eq!(text[6], "output tokens/s: 19.93");
        assert_eq!(text[8], "median TTFT ms: 200.00");
        assert_eq!(text[13], "P99 eval rate tokens/s: 50.00");
        assert_eq!(benchmark_rows(&Summary::default())[8].1, "-");
    }

    #[test]
    fn tables_fit_a_terminal() {
        let long = "  word".to_owned() + &" word".repeat(40);
        let text = wrapped(&long);
        assert!(
            text.lines().count() == 3
                && text.lines().all(|line| line.chars().count() <= WIDTH && line.starts_with("  w"))
        );
        assert_eq!(text.split_whitespace().count(), 41);
        assert_eq!(wrapped("\na  b\n"), "\na b\n");
        let head: Vec<String> = (0..9).map(|column| format!("127.0.0.1:800{column}")).collect();
        let rows = [head.clone(), head];
        let table = fitting(&rows);
        assert!(table.lines().all(|line| line.chars().count() <= WIDTH), "{table}");
        assert_eq!(table.matches("127.0.0.1:8008").count(), 2, "every column is there once");
        assert_eq!(table.matches("127.0.0.1:8000").count(), 4, "the first one in each part");
    }

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(aligned(&[row(["arm", "n"]), row(["tp1x2", "150"])]), "arm      n\n-----  ---\ntp1x2  150\n");
    }
}
