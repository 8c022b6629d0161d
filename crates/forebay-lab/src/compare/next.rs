//! What to do next where no verdict is given: the commands that, followed to the letter, give one. Turns are added to those that the
//! rows have until [`Design`] has nothing against the order, so that advice and rule cannot disagree. Pure.

use super::design::{Design, ENOUGH, Turn};
use super::model::Step;
use super::options::Options;
use super::pair::Raw;
use super::trial::{Group, Trial};
use super::verdict::{PlannedUnit, Unjudged, Verdict};
use crate::rows::command::{option_of, shell_line, with_option, words};
use crate::rows::row_file::{RunHead, Source};

/// The most turns that are advised: with more, something else is wrong.
const MOST: usize = 40;
/// The time between two turns that are yet to come, in milliseconds.
const APART_MS: f64 = 60_000.0;

/// An arm with the turns that it has had, and those that it is to have.
struct ArmTurns<'a> {
    arm: &'a str,
    turns: Vec<Turn>,
    /// The command of its last run.
    command: Option<Vec<String>>,
    seed: u64,
    start: Option<u32>,
}

impl ArmTurns<'_> {
    fn starts(&self) -> usize {
        self.turns.iter().filter_map(|turn| turn.start).collect::<std::collections::BTreeSet<_>>().len()
    }

    fn last(&self) -> f64 {
        self.turns.iter().map(|turn| turn.at).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Returns the steps towards a verdict of the first pair that has none; nothing where all have one.
pub(super) fn steps(groups: &[Group], places: &[usize], raws: &[Raw], options: &Options) -> Vec<Step> {
    // The first alone: its advice often settles the others as well, and two lists of commands would start servers twice.
    let open = places.iter().zip(raws).find_map(|(place, raw)| match raw.pair.verdict {
        Verdict::NotJudged { because } => Some((&groups[*place], because)),
        _ => None,
    });
    let Some((group, because)) = open else { return Vec::new() };
    match because {
        Unjudged::FailedCheck { check } => vec![Step::Say(mend(check).to_owned())],
        Unjudged::BeyondPlan { .. } => {
            vec![Step::Say("Choose a number of starts anew, and compare only what you run then.".to_owned())]
        }
        Unjudged::NoFigure { .. } => vec![Step::Say(
            "Send less at once, or mend what refuses requests, until nearly all of them are served. Then measure again.".to_owned(),
        )],
        Unjudged::SessionsUnknown => vec![Step::Say(
            "Give each request a session (`forebay bench --session-header NAME`, and `pools.session` in the configuration), and send at \
             least 200 sessions to each arm."
                .to_owned(),
        )],
        Unjudged::Interim { of: PlannedUnit::Runs, .. } => {
            vec![Step::Say("Give the command of the experiment again: it goes on with the turns that are left.".to_owned())]
        }
        _ if group.live => live(group, options),
        _ => in_turn(group, options),
    }
}

/// Says what to do about a check that failed.
fn mend(check: &str) -> &'static str {
    match check {
        "failed" => "Find out why requests failed (`forebay bench` prints the reasons), mend that, and measure again.",
        "lag" => {
            "Give the load generator a core of its own, or send less from one process; of simulated servers, lower the time scale (`time_scale` \
             in the experiment and in its commands). Then measure again."
        }
        "balance" => {
            "Give all arms the same prompts and let all answers have one length (--ignore-eos). Then measure again."
        }
        "models" => "Ask all arms for one model. Then measure again.",
        "same_load" => "Give all runs the same --num-prompts. Then measure again.",
        "sample_ratio" => {
            "Say how sessions were to be shared (--share ARM=SHARE), or mend the shares of the split. Then measure again."
        }
        "crossed" => {
            "Set `cross_arm = false` in the pool, so that requests wait for their own arm. Then measure again."
        }
        _ => "Mend that and measure again.",
    }
}

fn heads<'a>(group: &'a Group) -> impl Iterator<Item = (&'a Trial<'a>, &'a RunHead)> {
    group.trials.iter().filter_map(|trial| Some((trial, trial.head?)))
}

/// The steps for arms that share one proxy: all servers are started again, and the same load is sent.
fn live(group: &Group, options: &Options) -> Vec<Step> {
    let wanted = options.planned_starts.unwrap_or(ENOUGH as u32).max(ENOUGH as u32);
    if heads(group).any(|(_, head)| head.source == Source::AccessLog) {
        return vec![
            Step::Say(format!(
                "A log does not tell which start of the servers answered. Let the split run over {wanted} starts of all servers, and keep \
                 the log of each start in a file of its own. Then:"
            )),
            Step::Run(format!(
                "forebay compare {} --start-per-file --planned-starts {wanted}",
                (1..=wanted).map(|number| format!("start-{number}.log")).collect::<Vec<_>>().join(" ")
            )),
        ];
    }
    let known: std::collections::BTreeSet<u32> = group.trials.iter().filter_map(|trial| trial.start).collect();
    let Some(head) = heads(group).map(|(_, head)| head).last() else { return by_hand(wanted) };
    let Some(command) = head.command.as_deref().and_then(words) else { return by_hand(wanted) };
    let mut steps = Vec::new();
    for number in known.len() as u32 + 1..=wanted {
        steps.push(Step::Say("Restart the servers of all arms, then:".to_owned()));
        let seed =
            option_of(&command, "--seed").and_then(|seed| seed.parse().ok()).unwrap_or(0) + u64::from(number) - 1;
        let next = with_option(command.clone(), "--seed", &seed.to_string());
        steps.push(Step::Run(shell_line(with_option(next, "--epoch", &(number - 1).to_string()))));
    }
    steps.extend(then_compare(options, wanted));
    steps
}

/// The steps for arms that take turns: which servers to restart when, and what to run.
fn in_turn(group: &Group, options: &Options) -> Vec<Step> {
    let clock = group.trials.iter().all(|trial| trial.began_ms.is_some());
    let unknown = group.trials.iter().any(|trial| trial.start.is_none());
    let mut lines = lines(group, clock);
    if unknown {
        // Runs whose start nobody knows cannot be used, however many more there are.
        lines.iter_mut().for_each(|line| line.turns.clear());
    }
    let planned = heads(group).filter_map(|(_, head)| head.planned_starts).min().or(options.planned_starts);
    let mut wanted = planned.map_or(ENOUGH, |planned| (planned as usize).max(ENOUGH));
    let mut epoch = group.trials.iter().map(|trial| trial.epoch).max().unwrap_or(0);
    // The numbers that the commands will have: equal numbers of two arms link their starts.
    let mut numbers: Vec<Option<u32>> = lines.iter().map(|line| line.start.or(unknown.then_some(0))).collect();
    let mut turns: Vec<(usize, u32)> = Vec::new();
    // The rule itself is asked after each turn that is added. Any list that was made up beside it would some day be refused
    // by it.
    while turns.len() < MOST && !judged(&lines, wanted, clock) {
        let Some(next) = whose_turn(&lines, wanted) else {
            // As many as wanted, and still not in turns: with a plan that cannot be mended.
            if planned.is_some() {
                return vec![Step::Say("Measure again, with the arms in turns: A, B, B, A, A, B.".to_owned())];
            }
            wanted += 1;
            continue;
        };
        let at = lines.iter().map(ArmTurns::last).fold(f64::NEG_INFINITY, f64::max);
        let at = if at.is_finite() { at + if clock { APART_MS } else { 1.0 } } else { 0.0 };
        // Where servers say their start, only that it is another one is known.
        numbers[next] = numbers[next].map(|number| number + 1);
        let start = numbers[next].unwrap_or(u32::MAX - turns.len() as u32);
        lines[next].turns.push(Turn { block: None, start: Some(start), at });
        epoch += 1;
        turns.push((next, epoch));
    }
    if turns.is_empty() || lines.iter().any(|line| line.command.is_none()) {
        return by_hand(wanted as u32);
    }
    commands(&mut lines, &turns, unknown, options, wanted as u32)
}

fn lines<'a>(group: &'a Group, clock: bool) -> Vec<ArmTurns<'a>> {
    let mut lines: Vec<ArmTurns> = Vec::new();
    for trial in &group.trials {
        let place = lines.iter().position(|line| line.arm == trial.arm).unwrap_or_else(|| {
            lines.push(ArmTurns { arm: &trial.arm, turns: Vec::new(), command: None, seed: 0, start: None });
            lines.len() - 1
        });
        let line = &mut lines[place];
        let at = trial.began_ms.filter(|_| clock).map_or(f64::from(trial.epoch), |ms| ms as f64);
        line.turns.push(Turn { block: trial.block, start: trial.start, at });
        if let Some(command) = trial.head.and_then(|head| head.command.as_deref()).and_then(words) {
            let number = |name: &str| option_of(&command, name).and_then(|text| text.parse::<u64>().ok());
            line.seed = line.seed.max(number("--seed").unwrap_or(0));
            line.start = line.start.max(number("--start").and_then(|start| u32::try_from(start).ok()));
            line.command = Some(command);
        }
    }
    lines
}

/// Returns whether each arm has the starts that are wanted, and no pair of arms a bar.
fn judged(lines: &[ArmTurns], wanted: usize, clock: bool) -> bool {
    let pairs = || lines.iter().enumerate().flat_map(|(place, a)| lines[place + 1..].iter().map(move |b| (a, b)));
    lines.iter().all(|line| line.starts() >= wanted)
        && pairs().all(|(a, b)| Design::of(&a.turns, &b.turns, clock).bar.is_none())
}

/// Returns the arm whose turn is next: of those with the fewest starts the one that ran last, so that orders alternate (A, B, B, A).
fn whose_turn(lines: &[ArmTurns], wanted: usize) -> Option<usize> {
    let open = lines.iter().enumerate().filter(|(_, line)| line.starts() < wanted);
    let later = |a: &ArmTurns, b: &ArmTurns| b.last().total_cmp(&a.last());
    // Who has fewest starts, and of those who ran last: from nothing that gives A, B, B, A, A, B.
    open.min_by(|(_, a), (_, b)| a.starts().cmp(&b.starts()).then(later(a, b))).map(|(place, _)| place)
}

fn commands(lines: &mut [ArmTurns], turns: &[(usize, u32)], fresh: bool, options: &Options, wanted: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut files = Vec::new();
    for (place, epoch) in turns {
        let line = &mut lines[*place];
        // The prompts of an earlier run may still be in a prefix cache, also where the servers were restarted behind a shared
        // one.
        line.seed += 1;
        let Some(mut command) = line.command.clone() else { continue };
        // A server that says when it started needs no number, and a number beside it would count for another start.
        if fresh || line.start.is_some() {
            let start = line.start.map_or(1, |start| start + 1);
            line.start = Some(start);
            command = with_option(command, "--start", &start.to_string());
        }
        command = with_option(command, "--seed", &line.seed.to_string());
        command = with_option(command, "--epoch", &epoch.to_string());
        if let Some(old) = option_of(&command, "--output").filter(|_| fresh).map(str::to_owned) {
            let new = format!("{}-again.jsonl", old.trim_end_matches(".jsonl"));
            command = with_option(command, "--output", &new);
            files.push((old, new));
        }
        steps.push(Step::Say(format!("Restart the servers of {}, then:", line.arm)));
        steps.push(Step::Run(shell_line(command)));
    }
    let mut compare = then_compare(options, wanted);
    for step in &mut compare {
        if let Step::Run(text) = step
            && let Some(command) = words(text)
        {
            let renamed = command.into_iter().map(|word| {
                let found = files.iter().find(|(old, _)| *old == word);
                found.map_or(word, |(_, new)| new.clone())
            });
            *text = shell_line(renamed.collect::<Vec<_>>());
        }
    }
    steps.extend(compare);
    steps
}

/// The comparison that follows, with the number of starts that is planned now.
fn then_compare(options: &Options, wanted: u32) -> Vec<Step> {
    let Some(command) = options.command.as_deref().and_then(words) else { return Vec::new() };
    let command = with_option(command, "--planned-starts", &wanted.to_string());
    vec![Step::Say("Then compare:".to_owned()), Step::Run(shell_line(command))]
}

/// The steps where the rows have no command to repeat.
fn by_hand(wanted: u32) -> Vec<Step> {
    vec![Step::Say(format!(
        "Start each arm's servers {wanted} times, let the arms take turns (A, B, B, A, A, B), and give each run another --seed and \
         --epoch. An experiment does this by itself (docs/compare.md)."
    ))]
}
