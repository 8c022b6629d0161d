//! What two arms' runs are evidence of: which starts of the servers they ran on, what links the arms, and in which order they had
//! their turns. From this alone, before any figure is seen, follows how figures are judged, and whether a winner may be named. Pure.
//!
//! The unit is a start of the servers. Where blocks or shared starts link the arms, a start gives one difference; else each arm's
//! starts are a group. With fewer than three starts there is no winner: how much another start would change is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use super::verdict::{Scope, Unjudged};
use crate::stats::serial::Harm;

/// Starts of a side from which a winner is named.
pub const ENOUGH: usize = 3;
/// With one side more than twice as many as the other, the smaller needs so many.
const UNEVEN: usize = 5;
/// Changes of turn from which arms alternate: A-B-B-A has two, and a drift that bends would still look like a difference.
const CHANGES: usize = 3;

/// A run of an arm, without its figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// The block that pairs it.
    pub block: Option<u32>,
    /// The start of the servers that it ran on; none: not known.
    pub start: Option<u32>,
    /// The time at which it ran, in any unit.
    pub at: f64,
}

/// Places of runs in the two lists that a design is made from: the baseline's and the arm's.
pub(super) type Places = [Vec<usize>; 2];

/// A unit that gives one difference: a start, or a block within one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Linked {
    /// The runs, block by block.
    pub(super) blocks: Vec<Places>,
    /// The time at which it ran.
    pub(super) at: f64,
    /// The time by which the arm was later than the baseline, on average; none: not known.
    pub(super) gap: Option<f64>,
}

/// A unit that gives one value of an arm.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Alone {
    pub(super) runs: Vec<usize>,
    pub(super) at: f64,
}

/// The units that are compared with each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Units {
    Pairs(Vec<Linked>),
    Groups([Vec<Alone>; 2]),
    /// Nothing: no interval can be had.
    Nothing,
}

/// The way in which two arms are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    pub(super) units: Units,
    /// The reach of an interval: any start only if the units are starts.
    pub scope: Scope,
    /// The reason why no winner may be named; none: one may.
    pub bar: Option<Unjudged>,
    /// Side and place of each run, in the order of their times; empty where no order is known.
    pub(super) order: Vec<(usize, usize)>,
    /// The harm of runs that resemble their neighbours, once it was asked for.
    pub(super) harm: OnceLock<Harm>,
}

impl Design {
    /// The design of a baseline's runs and an arm's. `clock`: whether their times are a clock's, and not a number in an experiment.
    #[must_use]
    pub fn of(baseline: &[Turn], arm: &[Turn], clock: bool) -> Design {
        let runs = Runs { turns: [baseline, arm], clock };
        if baseline.len() < 2 || arm.len() < 2 {
            let bar = Unjudged::FewEpochs { baseline: baseline.len() as u32, arm: arm.len() as u32 };
            return Design::nothing(Scope::OneRun, bar);
        }
        match runs.starts() {
            Some(starts) => runs.by_start(&starts),
            None => runs.within(&runs.all(), Unjudged::StartsUnknown),
        }
    }

    /// Returns a design that gives no interval, and the reason why.
    pub(super) fn nothing(scope: Scope, bar: Unjudged) -> Design {
        Design { units: Units::Nothing, scope, bar: Some(bar), order: Vec::new(), harm: OnceLock::new() }
    }

    /// Returns the number of units of each side: the baseline's, and the arm's.
    #[must_use]
    pub fn units(&self) -> (usize, usize) {
        match &self.units {
            Units::Pairs(pairs) => (pairs.len(), pairs.len()),
            Units::Groups([a, b]) => (a.len(), b.len()),
            Units::Nothing => (0, 0),
        }
    }
}

struct Runs<'a> {
    turns: [&'a [Turn]; 2],
    clock: bool,
}

impl Runs<'_> {
    fn all(&self) -> Places {
        self.turns.map(|turns| (0..turns.len()).collect())
    }

    /// The start of each run; none if one is not known.
    fn starts(&self) -> Option<[Vec<u32>; 2]> {
        let [a, b] = self.turns.map(|turns| turns.iter().map(|turn| turn.start).collect::<Option<Vec<u32>>>());
        Some([a?, b?])
    }

    fn at(&self, side: usize, places: &[usize]) -> f64 {
        places.iter().map(|place| self.turns[side][*place].at).sum::<f64>() / places.len() as f64
    }

    fn by_start(&self, starts: &[Vec<u32>; 2]) -> Design {
        let counts = [0, 1].map(|side| starts[side].iter().copied().collect::<BTreeSet<u32>>().len());
        let few = Unjudged::FewStarts { baseline: counts[0] as u32, arm: counts[1] as u32 };
        let linked = self.linked(starts);
        let enough = counts.iter().all(|count| *count >= ENOUGH);
        match linked.len() {
            0 if counts.iter().all(|count| *count >= 2) => self.in_groups(starts, (!enough).then_some(few)),
            0 => self.within(&self.all(), few),
            1 if !enough => self.within(&joined(&linked[0]), few),
            1 | 2 if enough => self.in_groups(starts, None),
            units => {
                let bar = (units < ENOUGH).then_some(few);
                self.design(Units::Pairs(linked), Scope::AnyStart, bar)
            }
        }
    }

    /// Starts that blocks, or their own numbers, link: each with the runs that it pairs.
    fn linked(&self, starts: &[Vec<u32>; 2]) -> Vec<Linked> {
        let blocks = self.blocks(&self.all());
        let mut roots: BTreeMap<u32, u32> = starts.iter().flatten().map(|start| (*start, *start)).collect();
        for block in &blocks {
            let mut members = (0..2).flat_map(|side| block[side].iter().map(move |place| starts[side][*place]));
            let Some(first) = members.next() else { continue };
            for other in members {
                let (one, two) = (root(&roots, first), root(&roots, other));
                roots.insert(one.max(two), one.min(two));
            }
        }
        let mut units: BTreeMap<u32, Vec<Places>> = BTreeMap::new();
        if blocks.is_empty() {
            let mut whole: BTreeMap<u32, Places> = BTreeMap::new();
            for (side, of_side) in starts.iter().enumerate() {
                for (place, start) in of_side.iter().enumerate() {
                    whole.entry(*start).or_default()[side].push(place);
                }
            }
            units.extend(whole.into_iter().map(|(start, places)| (start, vec![places])));
        }
        for block in blocks {
            units.entry(root(&roots, starts[0][block[0][0]])).or_default().push(block);
        }
        let both = |blocks: &Vec<Places>| blocks.iter().all(|block| block.iter().all(|side| !side.is_empty()));
        let linked: Vec<Vec<Places>> = units.into_values().filter(both).collect();
        // By the clock the runs of a unit were not together: the numbers of its blocks say nothing.
        if self.clock && !self.apart(&linked) { Vec::new() } else { self.units(linked) }
    }

    /// Units in the order of their times.
    fn units(&self, units: Vec<Vec<Places>>) -> Vec<Linked> {
        // Units that overlap in time have no order, and then no drift can be taken out of their differences.
        let orderly = self.apart(&units);
        let mut linked: Vec<Linked> = units.into_iter().map(|blocks| self.unit(blocks, orderly)).collect();
        linked.sort_by(|a, b| a.at.total_cmp(&b.at));
        linked
    }

    /// Blocks with runs of both arms among these, in the order of their numbers.
    fn blocks(&self, among: &Places) -> Vec<Places> {
        let mut blocks: BTreeMap<u32, Places> = BTreeMap::new();
        for (side, places) in among.iter().enumerate() {
            for place in places {
                if let Some(block) = self.turns[side][*place].block {
                    blocks.entry(block).or_default()[side].push(*place);
                }
            }
        }
        blocks.into_values().filter(|block| block.iter().all(|side| !side.is_empty())).collect()
    }

    /// Returns whether each unit was over before the next one began.
    fn apart(&self, units: &[Vec<Places>]) -> bool {
        let times = |block: &Places| -> Vec<f64> {
            (0..2).flat_map(|side| block[side].iter().map(move |place| self.turns[side][*place].at)).collect()
        };
        let ends = |unit: &Vec<Places>| {
            let all = unit.iter().flat_map(times);
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), at| (low.min(at), high.max(at)))
        };
        let mut spans: Vec<(f64, f64)> = units.iter().map(ends).collect();
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        spans.windows(2).all(|two| two[0].1 < two[1].0)
    }

    fn unit(&self, blocks: Vec<Places>, orderly: bool) -> Linked {
        let count = blocks.len() as f64;
        let mean = |of: &dyn Fn(&Places) -> f64| blocks.iter().map(of).sum::<f64>() / count;
        let at = mean(&|block| (self.at(0, &block[0]) + self.at(1, &block[1])) / 2.0);
        let gap = mean(&|block| self.at(1, &block[1]) - self.at(0, &block[0]));
        Linked { blocks, at, gap: orderly.then_some(gap) }
    }

    fn in_groups(&self, starts: &[Vec<u32>; 2], bar: Option<Unjudged>) -> Design {
        let groups = [0, 1].map(|side| {
            let mut of_start: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (place, start) in starts[side].iter().enumerate() {
                of_start.entry(*start).or_default().push(place);
            }
            of_start.into_values().map(|runs| Alone { at: self.at(side, &runs), runs }).collect()
        });
        self.groups(groups, Scope::AnyStart, bar)
    }

    /// Runs as the units, of which one cannot tell how much another start would change.
    fn within(&self, among: &Places, bar: Unjudged) -> Design {
        let blocks: Vec<Vec<Places>> = self.blocks(among).into_iter().map(|block| vec![block]).collect();
        if blocks.len() >= 2 && (!self.clock || self.apart(&blocks)) {
            return self.design(Units::Pairs(self.units(blocks)), Scope::TheseStarts, Some(bar));
        }
        if among.iter().any(|side| side.len() < 2) {
            return Design::nothing(Scope::OneRun, bar);
        }
        let groups = [0, 1].map(|side| {
            among[side].iter().map(|place| Alone { runs: vec![*place], at: self.turns[side][*place].at }).collect()
        });
        self.groups(groups, Scope::TheseStarts, Some(bar))
    }

    fn groups(&self, mut groups: [Vec<Alone>; 2], scope: Scope, bar: Option<Unjudged>) -> Design {
        groups.iter_mut().for_each(|group| group.sort_by(|a, b| a.at.total_cmp(&b.at)));
        if !alternate(&groups) {
            // A drift would look like a difference, and its size is not known.
            return Design::nothing(scope, Unjudged::NotAlternating);
        }
        let (least, most) = (groups[0].len().min(groups[1].len()), groups[0].len().max(groups[1].len()));
        let uneven = (least < UNEVEN && most > 2 * least)
            .then_some(Unjudged::Uneven { baseline: groups[0].len() as u32, arm: groups[1].len() as u32 });
        self.design(Units::Groups(groups), scope, bar.or(uneven))
    }

    fn design(&self, units: Units, scope: Scope, bar: Option<Unjudged>) -> Design {
        // Numbers that were given arm by arm tell no order: then nothing is known of which runs were neighbours.
        let told = !matches!(&units, Units::Pairs(pairs) if pairs.iter().any(|pair| pair.gap.is_none()));
        let of = |side: usize| (0..if told { self.turns[side].len() } else { 0 }).map(move |place| (side, place));
        let mut order: Vec<(usize, usize)> = of(0).chain(of(1)).collect();
        order.sort_by(|a, b| self.turns[a.0][a.1].at.total_cmp(&self.turns[b.0][b.1].at));
        Design { units, scope, bar, order, harm: OnceLock::new() }
    }
}

fn joined(unit: &Linked) -> Places {
    [0, 1].map(|side| unit.blocks.iter().flat_map(|block| block[side].iter().copied()).collect())
}

fn root(roots: &BTreeMap<u32, u32>, mut start: u32) -> u32 {
    while let Some(above) = roots.get(&start).filter(|above| **above != start) {
        start = *above;
    }
    start
}

/// Returns whether the arms took turns. Runs of both at one moment are a turn each. Without a difference in time this is unknown.
fn alternate(groups: &[Vec<Alone>; 2]) -> bool {
    let mut order: Vec<(f64, usize)> =
        (0..2).flat_map(|side| groups[side].iter().map(move |unit| (unit.at, side))).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut moments: Vec<(f64, [bool; 2])> = Vec::new();
    for (at, side) in order {
        match moments.last_mut().filter(|last| last.0 == at) {
            Some(last) => last.1[side] = true,
            None => moments.push((at, [side == 0, side == 1])),
        }
    }
    let mut changes = 0;
    let mut last = None;
    for (_, sides) in &moments {
        match sides {
            // Both at one moment: within it the arms change once, and once more from whichever ran before.
            [true, true] => changes += 1 + usize::from(last.is_some()),
            [first, _] => {
                let now = usize::from(!first);
                changes += usize::from(last.is_some_and(|last| last != now));
                last = Some(now);
                continue;
            }
        }
        last = Some(1);
    }
    let fewest = groups[0].len().min(groups[1].len());
    // Changes alone do not do: A B A B and then all of A has enough of them, and a drift in its tail.
    moments.len() > 1 && changes >= CHANGES.min(fewest) && balanced(groups)
}

/// Returns whether a trend can be told from a difference of the arms: a run's arm says less than half of when it was.
fn balanced(groups: &[Vec<Alone>; 2]) -> bool {
    let times = |side: usize| groups[side].iter().map(|unit| unit.at);
    let mean = |side: usize| times(side).sum::<f64>() / groups[side].len() as f64;
    let means = [mean(0), mean(1)];
    let within: f64 = (0..2).map(|side| times(side).map(|at| (at - means[side]).powi(2)).sum::<f64>()).sum();
    let counts = groups.each_ref().map(|group| group.len() as f64);
    let between = (means[1] - means[0]).powi(2) * counts[0] * counts[1] / (counts[0] + counts[1]);
    between <= within
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(starts: &[u32], first: f64, step: f64) -> Vec<Turn> {
        let turn = |(n, start): (u32, &u32)| Turn { block: None, start: Some(*start), at: first + step * f64::from(n) };
        (0..).zip(starts).map(turn).collect()
    }

    fn linked(blocks: u32, start: fn(u32) -> u32, first: f64) -> Vec<Turn> {
        let turn = |block| Turn { block: Some(block), start: Some(start(block)), at: first + 2.0 * f64::from(block) };
        (0..blocks).map(turn).collect()
    }

    #[test]
    fn starts_of_their_own_are_two_groups() {
        let design = Design::of(&turns(&[0, 2, 4], 0.0, 2.0), &turns(&[1, 3, 5], 1.0, 2.0), false);
        assert!(matches!(design.units, Units::Groups(_)));
        assert_eq!((design.units(), design.scope, design.bar), ((3, 3), Scope::AnyStart, None));
        let shared = Design::of(&turns(&[0, 0, 2, 2, 4, 4], 0.0, 2.0), &turns(&[1, 1, 3, 3, 5, 5], 1.0, 2.0), false);
        assert_eq!((shared.units(), shared.bar), ((3, 3), None), "a start is one, however many runs it has");
    }

    #[test]
    fn blocks_and_shared_starts_link_the_arms() {
        let design = Design::of(&linked(9, |block| block / 3, 0.0), &linked(9, |block| block / 3, 1.0), false);
        let Units::Pairs(units) = &design.units else { panic!("{design:?}") };
        assert_eq!((units.len(), units[0].blocks.len(), units[0].gap, design.bar), (3, 3, Some(1.0), None));
        let apart = Design::of(&linked(9, |block| block / 3, 0.0), &linked(9, |block| 10 + block / 3, 1.0), false);
        assert_eq!(apart.units(), (3, 3), "blocks link starts that have other numbers");
        let together = Design::of(&turns(&[0, 1, 2, 3], 0.0, 2.0), &turns(&[0, 1, 2, 3], 1.0, 2.0), false);
        assert!(matches!(together.units, Units::Pairs(_)), "one number is one start");
    }

    #[test]
    fn blocks_that_were_not_together_by_the_clock_link_nothing() {
        let (a, b) = (linked(5, |block| block, 0.0), linked(5, |block| 10 + block, 100.0));
        assert_eq!(Design::of(&a, &b, false).bar, None, "numbers of an experiment may be given arm by arm");
        assert_eq!(Design::of(&a, &b, true).bar, Some(Unjudged::NotAlternating));
    }

    #[test]
    fn without_three_starts_there_is_an_interval_and_no_winner() {
        let bar = |a: &[u32], b: &[u32]| {
            let design = Design::of(&turns(a, 0.0, 2.0), &turns(b, 1.0, 2.0), false);
            assert_ne!(design.units, Units::Nothing);
            (design.bar.unwrap(), design.scope)
        };
        let few = |baseline, arm| Unjudged::FewStarts { baseline, arm };
        assert_eq!(bar(&[0, 0, 0, 0], &[1, 1, 1, 1]), (few(1, 1), Scope::TheseStarts));
        assert_eq!(bar(&[0, 0, 2, 2], &[1, 1, 3, 3]), (few(2, 2), Scope::AnyStart));
        assert_eq!(bar(&[0, 0, 0, 0], &[0, 0, 0, 0]), (few(1, 1), Scope::TheseStarts));
        let untold = |first| -> Vec<Turn> {
            turns(&[0; 5], first, 2.0).into_iter().map(|turn| Turn { start: None, ..turn }).collect()
        };
        let design = Design::of(&untold(0.0), &untold(1.0), false);
        assert_eq!((design.units(), design.bar), ((5, 5), Some(Unjudged::StartsUnknown)));
    }

    #[test]
    fn arms_that_did_not_alternate_have_no_interval() {
        let bar = |a: &[f64], b: &[f64]| {
            let side = |times: &[f64], first: u32| -> Vec<Turn> {
                let turn = |(n, at): (u32, &f64)| Turn { block: None, start: Some(first + n), at: *at };
                (0..).zip(times).map(turn).collect()
            };
            let design = Design::of(&side(a, 0), &side(b, 100), false);
            (design.bar, design.units == Units::Nothing)
        };
        let not = (Some(Unjudged::NotAlternating), true);
        assert_eq!(bar(&[0.0, 1.0, 2.0, 3.0], &[4.0, 5.0, 6.0, 7.0]), not);
        assert_eq!(bar(&[0.0, 1.0, 6.0, 7.0], &[2.0, 3.0, 4.0, 5.0]), not, "A, then B, then A");
        assert_eq!(bar(&[0.0; 4], &[0.0; 4]), not, "no order is known");
        assert_eq!(bar(&[0.0, 1.0, 2.0, 3.0, 9.0], &[3.5, 5.0, 6.0, 7.0, 8.0]), not, "nearly all A, then all B");
        assert_eq!(bar(&[0.0, 3.0, 4.0], &[1.0, 2.0, 5.0]), (None, false));
        assert_eq!(bar(&[0.0, 1.0, 2.0], &[0.0, 1.0, 2.0]), (None, false), "both at once, three times");
    }

    #[test]
    fn a_side_with_few_starts_beside_many_names_no_winner() {
        let many: Vec<u32> = (0..20).collect();
        let design = Design::of(&turns(&[100, 101, 102], 0.5, 7.0), &turns(&many, 0.0, 1.0), false);
        assert_eq!(design.bar, Some(Unjudged::Uneven { baseline: 3, arm: 20 }));
    }
}
