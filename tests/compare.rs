//! `forebay compare` on made-up rows: its reports word for word, what it says of runs that are not what they should be, and its
//! exit codes. `UPDATE_GOLDEN=1` rewrites the reports; the difference is reviewed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "compare/html.rs"]
mod html;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use forebay_lab::compare::figure::Figure;
use forebay_lab::compare::model::{Cell, Comparison};
use forebay_lab::compare::verdict::{Crossing, Scope, Unjudged, Verdict};
use forebay_lab::compare::{CompareError, Options, compare};
use forebay_lab::rows::record::{Outcome, Record};
use forebay_lab::rows::row_file::{
    Load, Offered, RunEnd, RunHead, RunRows, Sample, write_end, write_head, write_record, write_sample,
};

/// A run to be made up.
#[derive(Clone, Copy)]
struct Made {
    arm: Option<&'static str>,
    epoch: u32,
    block: Option<u32>,
    start: Option<u32>,
    offered: Offered,
    requests: u32,
    /// Milliseconds.
    ttft: f64,
    tpot: f64,
}

const TP2: Made = Made {
    arm: Some("tp2"),
    epoch: 0,
    block: None,
    start: None,
    offered: Offered::Unlimited,
    requests: 200,
    ttft: 200.0,
    tpot: 25.0,
};

/// A normal of this spread around 1, by twelve uniforms: no logarithm whose last bit differs between machines.
fn around_one(spread: f64, rng: &mut fastrand::Rng) -> f64 {
    1.0 + spread * ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0)
}

fn made(made: &Made, seed: u64) -> RunRows {
    let mut rng = fastrand::Rng::with_seed(seed);
    let speed = around_one(0.02, &mut rng);
    let records = (0..made.requests).map(|id| {
        let sent_us = match made.offered {
            Offered::Rate(rate) => (f64::from(id) / rate * 1e6) as u64,
            _ => 0,
        };
        let ttft = (made.ttft * speed * around_one(0.2, &mut rng) * 1e3) as u64;
        let gap = (made.tpot * speed * around_one(0.05, &mut rng) * 1e3) as u64;
        let tokens = rng.u64(20..40);
        Record {
            arm: made.arm.map(str::to_owned),
            sent_us,
            first_event_us: Some(ttft),
            first_token_us: Some(ttft),
            gaps_us: vec![gap; tokens as usize - 1],
            end_us: ttft + gap * (tokens - 1),
            cached_tokens: None,
            conversation: None,
            turn: None,
            prompt_tokens: 100,
            output_tokens: tokens,
            outcome: Outcome::Success,
            status: Some(200),
            ..Record::unsent(id, made.epoch)
        }
    });
    let load = Load {
        offered: made.offered,
        num_prompts: made.requests,
        dataset: None,
        input_len: Some(100),
        output_len: Some(40),
        seed: 0,
        ..Load::default()
    };
    let head = RunHead {
        arm: made.arm.map(str::to_owned),
        epoch: made.epoch,
        block: made.block,
        start: made.start,
        load,
        model: "qwen".to_owned(),
        gpus: Some(2),
        replicas: Some(1),
        max_num_seqs: Some(256),
        simulated: false,
        ..RunHead::default()
    };
    RunRows { head: Some(head), records: records.collect(), samples: vec![], end: Some(RunEnd { lag_p99_us: 90 }) }
}

/// Epochs of both arms in turn, each on a start of its own: `of(arm, epoch)` says how fast.
fn in_turn(epochs: u32, offered: Offered, other: fn(Made) -> Made) -> Vec<RunRows> {
    let mut runs = Vec::new();
    for block in 0..epochs {
        let (first, second) = (2 * block, 2 * block + 1);
        let at = |epoch, made: Made| Made { epoch, block: Some(block), start: Some(epoch), offered, ..made };
        runs.push(made(&at(first, TP2), u64::from(first)));
        runs.push(made(&at(second, other(Made { arm: Some("tp1x2"), ..TP2 })), u64::from(second)));
    }
    runs
}

fn faster(made: Made) -> Made {
    Made { ttft: made.ttft * 0.7, tpot: made.tpot * 0.7, ..made }
}

fn written(runs: &[RunRows], file: &Path) {
    let mut out = Vec::new();
    for run in runs {
        if let Some(head) = &run.head {
            write_head(&mut out, head).unwrap();
        }
        for record in &run.records {
            write_record(&mut out, record).unwrap();
        }
        for sample in &run.samples {
            write_sample(&mut out, sample).unwrap();
        }
        if let Some(end) = run.end {
            write_end(&mut out, end).unwrap();
        }
    }
    std::fs::write(file, out).unwrap();
}

fn command(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_forebay")).arg("compare").args(args).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

fn golden(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; UPDATE_GOLDEN=1 rewrites it");
}

fn warned(comparison: &Comparison, check: &str) -> bool {
    comparison.warnings.iter().any(|warning| warning.check == check)
}

fn verdict(comparison: &Comparison) -> &Verdict {
    &comparison.points[0].pairs[0].verdict
}

/// The JSON with its long rows of numbers as their length.
fn shortened(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(items) if items.len() > 20 => *value = format!("{} items", items.len()).into(),
        serde_json::Value::Array(items) => items.iter_mut().for_each(shortened),
        serde_json::Value::Object(members) => members.values_mut().for_each(shortened),
        serde_json::Value::Number(number) if number.is_f64() => {
            // Six digits: the last ones depend on the machine's logarithm.
            *value = format!("{:.6e}", number.as_f64().unwrap()).into();
        }
        _ => {}
    }
}

#[test]
fn reports_are_as_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let runs = in_turn(4, Offered::Unlimited, faster);
    let (tp2, tp1x2): (Vec<RunRows>, Vec<RunRows>) =
        runs.into_iter().partition(|run| run.head.as_ref().unwrap().arm.as_deref() == Some("tp2"));
    written(&tp2, &dir.path().join("tp2.jsonl"));
    written(&tp1x2, &dir.path().join("tp1x2.jsonl"));
    let files = ["tp2.jsonl", "tp1x2.jsonl", "--slo", "ttft=220ms,tpot=25ms", "--price", "tp2=4", "--price", "tp1x2=5"];
    let (code, text, _) = command(dir.path(), &[&files[..], &["--markdown", "out.md"]].concat());
    assert_eq!(code, 0);
    golden("compare.txt", &text);
    golden("compare-full.txt", &command(dir.path(), &[&files[..], &["--full"]].concat()).1);
    golden("compare.md", &std::fs::read_to_string(dir.path().join("out.md")).unwrap());
    let (code, json, _) = command(dir.path(), &[&files[..], &["--json"]].concat());
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    shortened(&mut json);
    assert_eq!(code, 0);
    golden("compare.json", &(serde_json::to_string_pretty(&json).unwrap() + "\n"));
    written(&tp2[..1], &dir.path().join("one.jsonl"));
    written(&tp1x2[..1], &dir.path().join("other.jsonl"));
    golden("compare-one-run.txt", &command(dir.path(), &["one.jsonl", "other.jsonl"]).1);
}

#[test]
fn wrong_usage_is_2_and_a_file_that_cannot_be_read_is_1() {
    let dir = tempfile::tempdir().unwrap();
    written(&[made(&TP2, 1)], &dir.path().join("a.jsonl"));
    written(&[made(&Made { arm: Some("b"), ..TP2 }, 2)], &dir.path().join("b.jsonl"));
    std::fs::write(dir.path().join("broken.jsonl"), "{\"nonsense\":1}\n").unwrap();
    for (args, code, said) in [
        (&["a.jsonl"][..], 2, "these files have one arm, `tp2`"),
        (&["a.jsonl", "b.jsonl", "--baseline", "c"], 2, "--baseline: no arm is called `c`; there are tp2, b"),
        (&["a.jsonl", "b.jsonl", "--price", "b=-1"], 2, "--price b=-1: it must be above 0"),
        (&["a.jsonl", "b.jsonl", "--price", "b"], 2, "is not ARM=NUMBER"),
        (&["a.jsonl", "b.jsonl", "--slo", "ttft=5"], 2, "is no limit for ttft"),
        (&["a.jsonl", "b.jsonl", "--block", "1m"], 2, "at least 5m"),
        (&["a.jsonl", "none.jsonl"], 1, "none.jsonl"),
        (&["a.jsonl", "broken.jsonl"], 2, "broken.jsonl: line 1 is no row"),
        (&["a.jsonl", "b.jsonl", "--markdown", "no/such/folder"], 1, "cannot write no/such/folder"),
        (&[], 2, "required"),
    ] {
        let (found, out, error) = command(dir.path(), args);
        assert!(found == code && error.contains(said) && out.is_empty(), "{args:?}: {found} {error}");
    }
}

#[test]
fn a_reader_that_has_left_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    written(&in_turn(1, Offered::Unlimited, faster), &dir.path().join("rows.jsonl"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let piped =
        command.args(["compare", "rows.jsonl"]).current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = piped.spawn().unwrap();
    drop(run.stdout.take());
    let done = run.wait_with_output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}

#[test]
fn a_file_without_an_arm_is_an_arm_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seed) in [("fast", 1), ("slow", 2)] {
        let run = made(&Made { arm: None, ..TP2 }, seed);
        written(std::slice::from_ref(&run), &dir.path().join(format!("{name}.jsonl")));
    }
    let (code, text, _) = command(dir.path(), &["fast.jsonl", "slow.jsonl"]);
    assert!(code == 0 && text.contains("NO VERDICT: fast and slow with all requests at once are not judged"), "{text}");
}

#[test]
fn the_offered_load_says_which_figure_decides() {
    let figure = |offered, slo: Option<&str>| {
        let options = Options { slo: slo.map(|slo| slo.parse().unwrap()), ..Options::default() };
        let comparison = compare(&in_turn(3, offered, faster), &options).unwrap();
        let ratios = &comparison.points[0].pairs[0].ratios;
        assert_eq!(ratios.iter().filter(|ratio| ratio.primary).count(), 1);
        ratios[0].figure
    };
    assert_eq!(figure(Offered::Unlimited, None), Figure::OutputTokensPerGpu);
    assert_eq!(figure(Offered::Concurrency(8), Some("ttft=1s")), Figure::OutputTokensPerGpu);
    assert_eq!(figure(Offered::Rate(50.0), None), Figure::TtftP95);
    assert_eq!(figure(Offered::Rate(50.0), Some("ttft=160ms")), Figure::SloMisses);
}

#[test]
fn an_arm_that_never_meets_the_slo_loses_to_one_that_does() {
    let options = Options { slo: Some("tpot=21ms".parse().unwrap()), ..Options::default() };
    let comparison = compare(&in_turn(4, Offered::Rate(50.0), faster), &options).unwrap();
    let cell = &comparison.points[0].cells[0];
    let share = cell.figures.iter().find(|one| one.figure == Figure::SloAttainment).unwrap();
    assert!(share.value < 0.1, "{share:?}");
    assert!(matches!(verdict(&comparison), Verdict::Winner { arm, ratio, .. } if arm == "tp1x2" && *ratio < 0.2));
}

/// Runs of three arms in turn; `tpot` gives the milliseconds of each arm at each start.
fn three(tpot: fn(&str, u32) -> f64) -> Vec<RunRows> {
    let mut runs = Vec::new();
    for start in 0..4 {
        let mut arms = ["tp4", "tp2x2", "tp1x4"];
        if start % 2 == 1 {
            arms.reverse();
        }
        for arm in arms {
            let epoch = runs.len() as u32;
            let at =
                Made { arm: Some(arm), epoch, block: Some(start), start: Some(start), tpot: tpot(arm, start), ..TP2 };
            runs.push(made(&at, u64::from(epoch)));
        }
    }
    runs
}

#[test]
fn three_arms_are_compared_in_all_pairs_and_one_that_wins_each_is_the_best() {
    let runs = three(|arm, _| if arm == "tp1x4" { 15.0 } else { 25.0 });
    let comparison = compare(&runs, &Options::default()).unwrap();
    let pairs: Vec<_> =
        comparison.points[0].pairs.iter().map(|pair| (pair.baseline.as_str(), pair.arm.as_str())).collect();
    assert_eq!(pairs, [("tp4", "tp2x2"), ("tp4", "tp1x4"), ("tp2x2", "tp1x4")]);
    // Holm: the smallest p of three verdicts counts three times, the largest once.
    let firsts: Vec<_> = comparison.points[0].pairs.iter().map(|pair| pair.ratios[0]).collect();
    let of = |ratio: &forebay_lab::compare::verdict::Ratio| ratio.p_adjusted.unwrap() / ratio.p.unwrap();
    assert!(firsts.iter().any(|ratio| of(ratio) > 2.9) && firsts.iter().any(|ratio| of(ratio) < 1.1), "{firsts:?}");
    let said = forebay_lab::compare::report::text::text(&comparison);
    assert!(said.contains("The best arm with all requests at once is tp1x4: it wins each of its pairs."), "{said}");
    let baseline = Options { baseline: Some("tp2x2".to_owned()), ..Options::default() };
    let comparison = compare(&runs, &baseline).unwrap();
    assert_eq!(comparison.points[0].pairs.len(), 2, "a baseline that was named is what the others are compared with");
    let said = forebay_lab::compare::report::text::text(&comparison);
    assert!(!said.contains("best"), "nobody compared tp4 with tp1x4: {said}");
}

#[test]
fn no_sentence_names_a_best_arm_where_one_pair_differs() {
    // The middle arm's starts differ so much that neither of its pairs can show anything.
    let runs = three(|arm, start| match arm {
        "tp4" => 25.0,
        "tp1x4" => 15.0,
        _ => [10.0, 32.0, 14.0, 26.0][start as usize],
    });
    let comparison = compare(&runs, &Options::default()).unwrap();
    let winners = comparison.points[0].pairs.iter().filter(|pair| matches!(pair.verdict, Verdict::Winner { .. }));
    assert_eq!(winners.count(), 1, "{:?}", comparison.points[0].pairs);
    let said = forebay_lab::compare::report::text::text(&comparison);
    assert!(said.contains("tp1x4 is better than tp4") && said.contains("No arm is shown to be the best"), "{said}");
    assert!(!said.contains("The best arm") && said.matches(" is better ").count() == 1, "{said}");
    let page = html::page(&runs, &[]);
    assert!(page.contains("No arm is shown to be the best") && page.matches(" is better than ").count() == 1);
}

#[test]
fn the_first_arm_of_the_files_is_the_baseline() {
    let dir = tempfile::tempdir().unwrap();
    for arm in ["z", "a"] {
        written(&[made(&Made { arm: Some(arm), ..TP2 }, 1)], &dir.path().join(format!("{arm}.jsonl")));
    }
    let baseline = |args: &[&str]| {
        let json: serde_json::Value = serde_json::from_str(&command(dir.path(), args).1).unwrap();
        json["baseline"].as_str().unwrap().to_owned()
    };
    assert_eq!(baseline(&["z.jsonl", "a.jsonl", "--json"]), "z");
    assert_eq!(baseline(&["a.jsonl", "z.jsonl", "--json"]), "a");
    // Also of a live split, whose first request here went to the arm that is later by name.
    let mut split = live(0.5);
    split.records.sort_by_key(|record| record.assigned.is_some() || record.arm.as_deref() != Some("tp2"));
    written(&[split], &dir.path().join("live.jsonl"));
    assert_eq!(baseline(&["live.jsonl", "--json"]), "tp2");
}

#[test]
fn a_terminal_s_lines_fit_and_only_a_terminal_has_colours() {
    let comparison = compare(&in_turn(4, Offered::Unlimited, faster), &Options::default()).unwrap();
    let print = |full, colours| {
        let shown = forebay_lab::compare::report::text::Shown { full, colours, wrap: true };
        forebay_lab::compare::report::text::shown(&comparison, shown)
    };
    for said in [print(false, false), print(true, false)] {
        assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
    // The plan is missing, which is a note: the verdict is amber, in a word and in a colour.
    let said = print(false, true);
    assert!(said.contains("\u{1b}[1m\u{1b}[33mVERDICT, amber: "), "{said:?}");
    assert!(said.lines().last().unwrap().contains("note: ") || said.contains("\n  note: "), "{said}");
    let rows =
        said.lines().skip_while(|line| !line.starts_with("---")).skip(1).take_while(|line| !line.starts_with("The"));
    assert_eq!(rows.count(), 5, "{said}");
}

#[test]
fn alike_arms_are_said_to_show_no_difference_and_what_would_have_shown() {
    let comparison = compare(&in_turn(5, Offered::Unlimited, |made| made), &Options::default()).unwrap();
    let Verdict::NoDifference { detectable, scope, .. } = verdict(&comparison) else { panic!("{comparison:?}") };
    assert!((1.02..1.2).contains(detectable) && *scope == Scope::AnyStart, "{detectable}");
}

#[test]
fn copies_and_runs_that_were_cut_off_are_no_epochs() {
    let mut runs = in_turn(3, Offered::Unlimited, faster);
    let copy = RunRows { head: runs[0].head.clone().map(|head| RunHead { epoch: 9, ..head }), ..runs[0].clone() };
    let cut = RunRows { end: None, ..runs[2].clone() };
    runs[2] = cut;
    runs.push(copy);
    let comparison = compare(&runs, &Options::default()).unwrap();
    assert_eq!(comparison.points[0].cells[0].epochs.len(), 2);
    assert!(warned(&comparison, "copy") && warned(&comparison, "left_out"));
    let few = Unjudged::FewStarts { baseline: 2, arm: 3 };
    assert!(matches!(verdict(&comparison), Verdict::NotJudged { because } if *because == few));
}

#[test]
fn starts_that_are_shared_or_not_known_head_the_report() {
    let mut runs = in_turn(4, Offered::Unlimited, faster);
    for run in &mut runs {
        run.head.as_mut().unwrap().start = None;
    }
    let comparison = compare(&runs, &Options::default()).unwrap();
    assert!(comparison.scope == Scope::TheseStarts && warned(&comparison, "these_starts"));
    assert!(matches!(verdict(&comparison), Verdict::NotJudged { because: Unjudged::StartsUnknown }));
}

#[test]
fn a_late_generator_failures_and_unequal_loads_head_the_report() {
    let mut runs = in_turn(3, Offered::Unlimited, faster);
    runs[0].end = Some(RunEnd { lag_p99_us: 2500 });
    runs[1].records.truncate(150);
    for record in runs[2].records.iter_mut().take(40) {
        record.outcome = Outcome::Truncated;
    }
    for record in &mut runs[3].records {
        record.prompt_tokens = 200;
    }
    let comparison = compare(&runs, &Options::default()).unwrap();
    for check in ["lag", "same_load", "failed", "balance"] {
        assert!(warned(&comparison, check), "{check}: {:?}", comparison.warnings);
    }
    let order: Vec<_> = comparison.warnings.iter().map(|warning| warning.gravity).collect();
    assert!(order.is_sorted());
}

/// A live split of 30 minutes: of two requests a second, this share goes to tp1x2, and every 50th crosses.
fn live(share: f64) -> RunRows {
    let mut rng = fastrand::Rng::with_seed(5);
    let plain = Made { arm: None, offered: Offered::Rate(2.0), requests: 3600, start: Some(0), ..TP2 };
    let mut run = made(&plain, 3);
    for record in &mut run.records {
        let arm = if rng.f64() < share { "tp1x2" } else { "tp2" };
        record.arm = Some(arm.to_owned());
        record.session = Some(format!("{:016x}", record.id));
        if record.id % 50 == 0 {
            record.assigned = Some(if arm == "tp2" { "tp1x2" } else { "tp2" }.to_owned());
        }
        if arm == "tp1x2" {
            record.first_event_us = record.first_event_us.map(|ttft| ttft * 7 / 10);
        }
    }
    run
}

#[test]
fn a_live_split_is_cut_into_blocks_and_paired() {
    let options = Options { baseline: Some("tp2".to_owned()), ..Options::default() };
    let comparison = compare(&[live(0.5)], &options).unwrap();
    let point = &comparison.points[0];
    assert!(point.live_split && point.cells.iter().all(|cell| cell.epochs.len() == 5 && cell.crossed > 0));
    assert!(point.sample_ratio.as_ref().unwrap().passed && point.balance.iter().all(|one| one.passed));
    assert!(warned(&comparison, "crossed") && warned(&comparison, "these_starts"));
    assert!(matches!(verdict(&comparison), Verdict::NotJudged { because: Unjudged::FewStarts { .. } }));
    let interval = point.pairs[0].ratios[0].interval.unwrap();
    assert!(interval.low > 0.6 && interval.high < 0.8, "by session, within this start: {interval:?}");
    let sum = |of: fn(&Cell) -> u64| -> u64 { point.cells.iter().map(of).sum() };
    assert_eq!(sum(|cell| cell.pooled.requests), 3600 - 72, "those that left their arm are in no figure");
    assert_eq!(sum(|cell| cell.crossed), 72);
    let left = comparison.warnings.iter().find(|warning| warning.check == "crossed").unwrap();
    assert!(left.text.contains("were served by another arm and are left out"), "{}", left.text);
}

#[test]
fn a_split_that_is_not_as_configured_heads_the_report() {
    let lopsided = live(0.6);
    let comparison = compare(std::slice::from_ref(&lopsided), &Options::default()).unwrap();
    assert_eq!(comparison.warnings[0].check, "sample_ratio");
    let shares = [("tp1x2".to_owned(), 60.0), ("tp2".to_owned(), 40.0)].into();
    let comparison = compare(&[lopsided], &Options { shares, ..Options::default() }).unwrap();
    assert!(!warned(&comparison, "sample_ratio"), "{:?}", comparison.points[0].sample_ratio);
}

#[test]
fn a_sweep_tells_where_the_better_arm_changes() {
    let mut runs = Vec::new();
    runs.extend(in_turn(4, Offered::Rate(20.0), |made| Made { ttft: made.ttft * 1.4, ..made }));
    runs.extend(in_turn(4, Offered::Rate(80.0), faster));
    runs.extend(in_turn(4, Offered::Rate(40.0), |made| made));
    let comparison = compare(&runs, &Options::default()).unwrap();
    let rates: Vec<_> = comparison.points.iter().map(|point| point.offered).collect();
    assert_eq!(rates, [20.0, 40.0, 80.0].map(|rate| Some(Offered::Rate(rate))));
    let found = comparison.crossovers.iter().find(|one| one.figure == Figure::TtftP95).unwrap();
    let Crossing::At { below, load, low: Some(low), high: Some(high), .. } = &found.found else { panic!("{found:?}") };
    assert!(below == "tp2" && 25.0 < *low && low < load && load < high && *high < 64.0, "{found:?}");
}

#[test]
fn arms_that_share_no_load_are_not_compared() {
    let runs = [made(&TP2, 1), made(&Made { arm: Some("b"), offered: Offered::Rate(1.0), ..TP2 }, 2)];
    let error = compare(&runs, &Options::default()).unwrap_err();
    assert!(matches!(error, CompareError::NothingInCommon(_)) && error.to_string().contains("b ran at 1 requests/s"));
}
