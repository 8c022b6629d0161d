//! A chart's axis: its ends, its ticks and their labels; straight or logarithmic. Pure.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;

/// Ticks on an axis, at most about.
const TICKS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Straight,
    Log,
}

/// The way in which values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AxisUnit {
    Plain,
    /// Milliseconds, from 1000 on as seconds.
    Time,
    /// A share of 1, as a percentage.
    Share,
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// The text beside it; may be empty.
    pub(super) name: String,
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
    unit: AxisUnit,
    /// Of a value that is one of these places: its words.
    words: Vec<String>,
}

impl Axis {
    /// A logarithmic axis for these values; none if none is above 0.
    pub(super) fn log(name: &str, unit: AxisUnit, values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let (from, to) = ends(values.into_iter().filter(|value| *value > 0.0))?;
        // A little air, and no axis of no length.
        let air = ((to / from).ln() * 0.04).max(0.02).exp();
        let (from, to) = (from / air, to * air);
        Some(Axis {
            name: name.to_owned(),
            scale: Scale::Log,
            from,
            to,
            ticks: log_ticks(from, to),
            unit,
            words: vec![],
        })
    }

    /// A straight axis for these values; none of no values.
    pub(super) fn straight(name: &str, unit: AxisUnit, values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let (from, to) = ends(values)?;
        let to = if to > 0.0 || from < 0.0 { to } else { 1.0 };
        let air = ((to - from) * 0.06).max(to.abs() * 0.001);
        // An axis that could begin at 0 without much loss does.
        let from = if from >= 0.0 && from < 0.5 * to { 0.0 } else { from - air };
        Some(Axis::between(name, unit, from, to + air))
    }

    /// A straight axis with these ends.
    pub(super) fn between(name: &str, unit: AxisUnit, from: f64, to: f64) -> Axis {
        let ticks = straight_ticks(from, to);
        Axis { name: name.to_owned(), scale: Scale::Straight, from, to, ticks, unit, words: vec![] }
    }

    /// An axis of words, the first at the top: the word at place n stands at n.
    pub(super) fn words(words: Vec<String>) -> Axis {
        let last = words.len() as f64 - 0.5;
        let ticks = (0..words.len()).map(|place| place as f64).collect();
        Axis { name: String::new(), scale: Scale::Straight, from: last, to: -0.5, ticks, unit: AxisUnit::Plain, words }
    }

    /// Puts ticks at these values, if they are few.
    pub(super) fn ticks_at(mut self, ticks: Vec<f64>) -> Axis {
        if ticks.len() <= TICKS {
            self.ticks = ticks;
        }
        self
    }

    /// Its ends.
    pub(super) fn ends(&self) -> (f64, f64) {
        (self.from, self.to)
    }

    /// The value nearest to this one that is on it.
    pub(super) fn clamp(&self, value: f64) -> f64 {
        value.clamp(self.from.min(self.to), self.from.max(self.to))
    }

    /// Returns the text that is written at a value.
    pub(super) fn label(&self, value: f64) -> String {
        if let Some(word) = self.words.get(value.round() as usize) {
            return word.clone();
        }
        match self.unit {
            AxisUnit::Plain => plain(value),
            AxisUnit::Time if value >= 999.999 => format!("{} s", plain(value / 1e3)),
            AxisUnit::Time => format!("{} ms", plain(value)),
            AxisUnit::Share => format!("{} %", plain(value * 100.0)),
        }
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = String> {
        self.ticks.iter().map(|tick| self.label(*tick))
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let place = |value: f64| match self.scale {
            Scale::Straight => value,
            Scale::Log => value.ln(),
        };
        RangedCoordf64::from(place(self.from)..place(self.to)).map(&place(*value), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

fn ends(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|value| value.is_finite()).fold(None, |ends, value| {
        let (low, high): (f64, f64) = ends.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// A tick's number: six digits, none of them a 0 at the end.
fn plain(value: f64) -> String {
    let digits = |value: f64| ((value * 1e6).round() / 1e6).to_string();
    match value.abs() {
        size if size >= 1e6 => format!("{}M", digits(value / 1e6)),
        size if size >= 1e4 => format!("{}k", digits(value / 1e3)),
        _ => digits(value),
    }
}

fn straight_ticks(from: f64, to: f64) -> Vec<f64> {
    RangedCoordf64::from(from..to).key_points(TICKS)
}

/// The finest of these series whose labels have room; even steps where the ends are so close that none has three. (plotters'
/// own ticks of a logarithmic axis are powers of ten, of which one decade has one.)
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let of_series = |series: &[f64]| -> Vec<f64> {
        let values = decades.clone().flat_map(|decade| series.iter().map(move |step| step * 10.0_f64.powi(decade)));
        values.filter(|value| (from..=to).contains(value)).collect()
    };
    let room = (to / from).ln() / TICKS as f64;
    let fits = |ticks: &Vec<f64>| ticks.windows(2).all(|two| (two[1] / two[0]).ln() >= room);
    let series: [&[f64]; 4] = [&[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    // Of many decades, every second one or fewer.
    let sparse = (2..=4).map(|step| {
        let some = decades.clone().filter(|decade| decade.rem_euclid(step) == 0);
        some.map(|decade| 10.0_f64.powi(decade)).filter(|value| (from..=to).contains(value)).collect()
    });
    let found = series.iter().map(|series| of_series(series)).chain(sparse).find(fits);
    found.filter(|ticks| ticks.len() >= 3).unwrap_or_else(|| {
        // Even steps come closer to each other towards the right end.
        let mut even = straight_ticks(from, to);
        let mut last = 0.0;
        even.retain(|tick| {
            let fits = last <= 0.0 || (tick / last).ln() >= room;
            last = if fits { *tick } else { last };
            fits
        });
        even
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.labels().collect()
    }

    #[test]
    fn a_logarithmic_axis_has_a_few_round_ticks_however_long_it_is() {
        let times = |from: f64, to: f64| labels(&Axis::log("", AxisUnit::Time, [from, to]).unwrap());
        assert_eq!(times(120.0, 2600.0), ["200 ms", "500 ms", "1 s", "2 s"]);
        assert_eq!(times(4.0, 90_000.0), ["10 ms", "100 ms", "1 s", "10 s", "100 s"]);
        for (from, to) in [(20.0, 20.0), (20.0, 20.1), (20.0, 23.0), (1.0, 9.0), (0.02, 70_000.0), (1e-3, 1e6)] {
            let count = times(from, to).len();
            assert!((2..=14).contains(&count), "{from} to {to}: {:?}", times(from, to));
        }
        assert_eq!(times(7.5, 21.0), ["8 ms", "10 ms", "12 ms", "16 ms", "20 ms"], "14 and 18 ms have no room");
        assert_eq!(Axis::log("", AxisUnit::Plain, [0.0, f64::NAN, -1.0]), None);
    }

    #[test]
    fn a_straight_axis_begins_at_0_unless_its_values_are_close() {
        let axis = |values: [f64; 2]| Axis::straight("", AxisUnit::Plain, values).unwrap();
        assert_eq!(labels(&axis([1.0, 5.0]))[0], "0");
        assert!(axis([2375.0, 2400.0]).from > 2370.0);
        assert!(axis([7.0, 7.0]).from < 7.0 && axis([0.0, 0.0]).to > 1.0);
        assert_eq!(
            labels(&Axis::between("", AxisUnit::Share, 0.0, 1.0)),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        assert_eq!([plain(4.3e6), plain(12_500.0), plain(0.1 + 0.2)], ["4.3M", "12.5k", "0.3"]);
    }
}
