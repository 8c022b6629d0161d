//! The HTML report: well-formed, whole, escaped, and with nothing in it that a browser would fetch or run.

use roxmltree::{Document, Node};

use super::*;

/// The page as XML, which forgives less than HTML: what it leaves open in its head is closed first.
fn parsed(page: &str) -> String {
    let body = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
    let mut out = String::new();
    for part in body.split_inclusive('>') {
        match part.strip_suffix('>') {
            Some(open) if part.trim_start().starts_with("<meta ") => out.push_str(&format!("{open}/>")),
            _ => out.push_str(part),
        }
    }
    out
}

fn text_of(node: Node) -> String {
    let words: Vec<&str> = node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect();
    words.join(" ")
}

fn named<'a, 'b>(page: &'a Document<'b>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'b>> {
    page.descendants().filter(move |node| node.has_tag_name(tag))
}

/// The page of these runs, by the command.
pub(super) fn page(runs: &[RunRows], args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    written(runs, &dir.path().join("rows.jsonl"));
    let (code, _, error) = command(dir.path(), &[&["rows.jsonl", "--html", "out.html"], args].concat());
    assert_eq!(code, 0, "{error}");
    std::fs::read_to_string(dir.path().join("out.html")).unwrap()
}

/// Nothing that a browser would fetch or run.
fn assert_contained(page: &Document, source: &str) {
    for node in page.descendants().filter(Node::is_element) {
        let tag = node.tag_name().name();
        assert!(!["script", "link", "img", "iframe", "object", "image", "use", "base"].contains(&tag), "{tag}");
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            assert!(!name.starts_with("on") && !["src", "srcset", "style"].contains(&name), "{tag} {name}");
            assert!(name != "href" || value.starts_with('#'), "{tag} {name}={value}");
        }
    }
    let css: String = named(page, "style").map(text_of).collect();
    assert!(!css.contains("url(") && !css.contains("@import"));
    assert!(!source.contains("http://") && !source.contains("https://"));
    let policy = named(page, "meta").filter_map(|meta| meta.attribute("content"));
    assert!(policy.into_iter().any(|policy| policy.starts_with("default-src 'none'")));
}

/// What a screen reader needs: a caption, scopes, and words for every drawing.
fn assert_spoken(page: &Document) {
    for table in named(page, "table") {
        assert!(table.children().any(|child| child.has_tag_name("caption")));
        assert!(table.descendants().filter(|node| node.has_tag_name("th")).all(|th| th.attribute("scope").is_some()));
    }
    let ids: Vec<&str> = page.descendants().filter_map(|node| node.attribute("id")).collect();
    let distinct: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), distinct.len(), "an id twice");
    for link in named(page, "a").filter_map(|link| link.attribute("href")) {
        assert!(distinct.contains(link.trim_start_matches('#')), "{link} leads nowhere");
    }
    for svg in named(page, "svg").filter(|svg| svg.attribute("aria-hidden").is_none()) {
        let said = |tag: &'static str, by: &'static str| {
            let id = svg.attribute(by).unwrap();
            svg.children()
                .any(|child| child.has_tag_name(tag) && child.attribute("id") == Some(id) && !text_of(child).is_empty())
        };
        assert!(said("title", "aria-labelledby") && said("desc", "aria-describedby"));
    }
}

fn titles(page: &Document) -> Vec<String> {
    named(page, "figcaption").map(|caption| text_of(caption.first_element_child().unwrap())).collect()
}

#[test]
fn it_has_every_figure_of_the_markdown_and_is_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let mut runs = in_turn(4, Offered::Unlimited, faster);
    for run in &mut runs {
        let sample = |second: u64| Sample {
            backend: "a".to_owned(),
            at_us: second * 1_000_000,
            running: Some(200.0 - second as f64),
            waiting: Some(0.0),
            kv_usage: Some(0.4),
            ..Sample::default()
        };
        run.samples = (0..5).map(sample).collect();
    }
    written(&runs, &dir.path().join("rows.jsonl"));
    let slo = ["rows.jsonl", "--slo", "ttft=220ms,tpot=25ms", "--price", "tp2=4", "--price", "tp1x2=5"];
    let (code, ..) = command(dir.path(), &[&slo[..], &["--markdown", "out.md", "--html", "out.html"]].concat());
    assert_eq!(code, 0);
    let source = std::fs::read_to_string(dir.path().join("out.html")).unwrap();
    let xml = parsed(&source);
    let page = Document::parse(&xml).unwrap();
    assert_contained(&page, &source);
    assert_spoken(&page);
    let markdown = std::fs::read_to_string(dir.path().join("out.md")).unwrap().replace('\\', "");
    let cells: Vec<String> = named(&page, "td").chain(named(&page, "th")).map(text_of).collect();
    let mut compared = 0;
    for cell in markdown.lines().filter(|line| line.starts_with("| ")).flat_map(|line| line.split('|')) {
        let cell = cell.trim();
        let with_interval = format!("{cell} (");
        assert!(
            cell.is_empty() || cells.iter().any(|other| other == cell || other.starts_with(&with_interval)),
            "`{cell}` is in the Markdown and not in the HTML"
        );
        compared += 1;
    }
    assert!(compared > 200, "{compared}");
    let all = text_of(page.root_element());
    for said in [
        "tp1x2 is better than tp2 with all requests at once",
        "This is not sure, because",
        "its timers were at most 0.09 ms late at P99",
        "tp2: 4 epochs on 4 starts; tp1x2: 4 epochs on 4 starts",
        "forebay compare rows.jsonl --slo",
        "if it meets ttft=220ms,tpot=25ms",
    ] {
        assert!(all.contains(said), "{said}");
    }
    assert_eq!(
        titles(&page),
        [
            "TTFT of all requests",
            "TPOT of all requests",
            "tp1x2 / tp2, figure by figure",
            "Output tokens/s per GPU, epoch by epoch",
            "Sequences that run",
            "Sequences that wait",
            "KV blocks in use"
        ]
    );
}

#[test]
fn names_from_files_are_text() {
    let evil = "<script>alert(1)</script>\"&'";
    let mut runs = in_turn(3, Offered::Rate(20.0), faster);
    for run in &mut runs {
        let head = run.head.as_mut().unwrap();
        head.model = evil.to_owned();
        if head.arm.as_deref() == Some("tp1x2") {
            head.arm = Some(evil.to_owned());
            run.records.iter_mut().for_each(|record| record.arm = Some(evil.to_owned()));
        }
    }
    let source = page(&runs, &[]);
    let xml = parsed(&source);
    let page = Document::parse(&xml).unwrap();
    assert_contained(&page, &source);
    assert_spoken(&page);
    assert!(
        named(&page, "svg").any(|svg| text_of(svg).contains(evil)) && named(&page, "th").any(|th| text_of(th) == evil)
    );
}

#[test]
fn a_sweep_is_drawn_against_its_loads_with_the_crossover() {
    let mut runs = in_turn(4, Offered::Rate(20.0), |made| Made { ttft: made.ttft * 1.4, ..made });
    runs.extend(in_turn(4, Offered::Rate(80.0), faster));
    let source = page(&runs, &["--slo", "ttft=260ms"]);
    let xml = parsed(&source);
    let page = Document::parse(&xml).unwrap();
    assert_contained(&page, &source);
    assert_spoken(&page);
    let titles = titles(&page);
    assert!(!titles.iter().any(|title| title.contains("okens/s")), "throughput follows these loads: {titles:?}");
    for title in ["P95 TTFT against load", "Share that met the SLO against load"] {
        assert!(titles.iter().any(|other| other == title), "{title}: {titles:?}");
    }
    assert!(named(&page, "li").any(|item| text_of(item).starts_with("P95 TTFT: tp2 is better below")));
    assert!(named(&page, "a").any(|link| link.attribute("href") == Some("#load-1")));
}

#[test]
fn failed_checks_and_rows_that_tell_little_are_said() {
    let mut runs = in_turn(1, Offered::Unlimited, faster);
    runs[0].end = Some(RunEnd { lag_p99_us: 40_000 });
    let source = page(&runs, &[]);
    let xml = parsed(&source);
    let document = Document::parse(&xml).unwrap();
    let head = named(&document, "header").map(text_of).collect::<String>();
    assert!(
        head.contains("are not judged") && head.contains("Failed check:") && head.contains("late by 40.0 ms"),
        "{head}"
    );
    let row = named(&document, "tr").map(text_of).find(|row| row.starts_with("load generator")).unwrap();
    assert!(row.contains("FAILED"), "{row}");
    // One epoch each: nothing to see in their order.
    assert_eq!(titles(&document), ["TTFT of all requests", "TPOT of all requests", "tp1x2 / tp2, figure by figure"]);
    // No answer at all: no distribution, and no panic.
    for record in runs.iter_mut().flat_map(|run| &mut run.records) {
        record.outcome = Outcome::Truncated;
    }
    let source = page(&runs, &["--slo", "ttft=1s"]);
    assert_contained(&Document::parse(&parsed(&source)).unwrap(), &source);
}

#[test]
fn odd_figures_are_drawn_or_left_out() {
    for offered in [Offered::Unlimited, Offered::Concurrency(4), Offered::Rate(0.001)] {
        for (requests, ttft, tpot) in [(1, 200.0, 25.0), (3, 0.0, 0.0), (2, 1e-3, 1e-3), (2, 1e9, 1e9)] {
            let mut runs = in_turn(3, offered, |made| made);
            for (seed, run) in (0..).zip(&mut runs) {
                let head = run.head.clone().unwrap();
                *run = RunRows { head: Some(head), ..made(&Made { offered, requests, ttft, tpot, ..TP2 }, seed / 2) };
            }
            let source = page(&runs, &["--slo", "ttft=1ms"]);
            assert_contained(&Document::parse(&parsed(&source)).unwrap(), &source);
            assert!(!source.contains("NaN"), "{offered:?} {requests} {ttft} {tpot}");
        }
    }
}

#[test]
fn the_title_says_what_was_measured_when_and_where_and_an_arm_keeps_its_colour() {
    let mut runs = in_turn(3, Offered::Unlimited, faster);
    for run in &mut runs {
        let head = run.head.as_mut().unwrap();
        (head.began_ms, head.host) =
            (Some(1_790_000_000_000 + u64::from(head.epoch) * 60_000), Some("gpu7".to_owned()));
    }
    let pages = [page(&runs, &[]), page(&runs, &["--baseline", "tp1x2"])];
    let colours = pages.each_ref().map(|source| {
        let xml = parsed(source);
        let page = Document::parse(&xml).unwrap();
        let title = named(&page, "title").find(|node| node.parent().is_some_and(|parent| parent.has_tag_name("head")));
        assert!(text_of(title.unwrap()).ends_with(", 2026-09-21, gpu7"), "{}", text_of(title.unwrap()));
        // In the key of every plot the arm's own colour stands beside its name.
        let keys = named(&page, "li").filter(|item| item.children().any(|child| child.has_tag_name("svg")));
        let mut of: std::collections::BTreeMap<String, std::collections::BTreeSet<String>> = Default::default();
        for key in keys {
            let colour = key.descendants().find_map(|node| node.attribute("stroke")).unwrap();
            of.entry(text_of(key).trim().to_owned()).or_default().insert(colour.to_owned());
        }
        assert!(of.len() == 2 && of.values().all(|colours| colours.len() == 1), "{of:?}");
        assert_eq!(named(&page, "p").filter(|node| node.attribute("class") == Some("contrast")).count(), 1);
        of
    });
    assert_eq!(colours[0], colours[1], "whoever is the baseline");
    assert_ne!(colours[0]["tp2"], colours[0]["tp1x2"]);
}
