//! Which charts a report has, and what each says in words. A chart that there are no data for is left out. Pure.

use super::axis::{Axis, AxisUnit};
use super::chart::{Along, Chart, DrawError, HEIGHT, Layer, Look, swatch};
use crate::compare::figure::Figure;
use crate::compare::format;
use crate::compare::model::{Arm, Cell, Comparison, Epoch, Moment, Point, QuantilePoint};
use crate::compare::verdict::{Bounds, Crossing, Crossover, LoadAxis, Pair, Ratio};
use crate::rows::row_file::Offered;

/// A chart in the page.
pub(super) struct Plot {
    pub(super) title: String,
    /// The way to read it, in a sentence.
    pub(super) caption: &'static str,
    /// The description of what it shows, for who does not see it.
    pub(super) description: String,
    pub(super) svg: String,
    /// The key to the arms in it: each one's name, and a piece of its line.
    pub(super) key: Vec<(String, String)>,
}

/// The arms of a comparison as they are drawn.
pub(super) struct Plots<'a> {
    arms: &'a [Arm],
}

impl<'a> Plots<'a> {
    pub(super) fn of(comparison: &'a Comparison) -> Plots<'a> {
        Plots { arms: &comparison.arms }
    }

    fn look(&self, arm: &str) -> Look {
        // By name: another baseline, or another order of the files, must not change whose colour is whose.
        let mut names: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        names.sort_unstable();
        Look::of(names.iter().position(|name| *name == arm).unwrap_or(0))
    }

    fn plot<'b>(
        &self,
        title: String,
        caption: &'static str,
        description: String,
        chart: &Chart,
        arms: impl Iterator<Item = &'b str>,
    ) -> Result<Plot, DrawError> {
        let key = arms.map(|arm| Ok((arm.to_owned(), swatch(self.look(arm))?))).collect::<Result<_, DrawError>>()?;
        Ok(Plot { title, caption, description, svg: chart.svg()?, key })
    }

    /// The charts of one load.
    pub(super) fn of_point(&self, point: &Point) -> Result<Vec<Plot>, DrawError> {
        let mut plots = Vec::new();
        plots.extend(self.distribution(point, "TTFT", |cell| &cell.ttft)?);
        plots.extend(self.distribution(point, "TPOT", |cell| &cell.tpot)?);
        for pair in &point.pairs {
            plots.extend(self.effects(pair)?);
        }
        plots.extend(self.epochs(point)?);
        plots.extend(self.timeline(point, "Sequences that run", AxisUnit::Plain, |moment| moment.running)?);
        plots.extend(self.timeline(point, "Sequences that wait", AxisUnit::Plain, |moment| moment.waiting)?);
        plots.extend(self.timeline(point, "KV blocks in use", AxisUnit::Share, |moment| moment.kv_usage)?);
        Ok(plots)
    }

    fn distribution(
        &self,
        point: &Point,
        what: &str,
        of: fn(&Cell) -> &Vec<QuantilePoint>,
    ) -> Result<Option<Plot>, DrawError> {
        // The lowest hundredth is left out: on a logarithmic axis one odd request there would push all others together.
        let points = |cell: &Cell| -> Vec<(f64, f64)> {
            of(cell).iter().filter(|one| one.ms > 0.0 && one.share >= 0.01).map(|one| (one.ms, one.share)).collect()
        };
        let cells: Vec<&Cell> = point.cells.iter().filter(|cell| !points(cell).is_empty()).collect();
        let values = cells.iter().flat_map(|cell| points(cell)).map(|(ms, _)| ms);
        let Some(x) = Axis::log(what, AxisUnit::Time, values) else { return Ok(None) };
        let mut layers = Vec::new();
        for (place, cell) in cells.iter().enumerate() {
            let points = points(cell);
            // Five markers a curve, at other shares in each arm, so that alike curves do not hide each other.
            let marks = points.iter().skip(8 + 4 * (place % 4)).step_by(20).copied().collect();
            layers.push(Layer::Line(self.look(&cell.arm), points));
            layers.push(Layer::Marks(self.look(&cell.arm), marks));
        }
        let at = |cell: &Cell, share: f64| {
            let found = of(cell).iter().find(|one| one.share >= share);
            found.map_or(f64::NAN, |one| one.ms)
        };
        let told = cells.iter().map(|cell| {
            let [half, most, nearly] = [0.5, 0.95, 0.99].map(|share| at(cell, share));
            format!("{}: half at most {half:.1} ms, 95 % {most:.1} ms, 99 % {nearly:.1} ms.", cell.arm)
        });
        let description = told.collect::<Vec<_>>().join(" ");
        let y = Axis::between("share of requests", AxisUnit::Share, 0.0, 1.0);
        let chart = Chart { height: HEIGHT, x, y, layers };
        let title = format!("{what} of all requests");
        let caption =
            "The share of requests whose time is at most so long; further left is better. The axis is logarithmic.";
        self.plot(title, caption, description, &chart, cells.iter().map(|cell| cell.arm.as_str())).map(Some)
    }

    /// Each figure of an arm over the baseline's.
    fn effects(&self, pair: &Pair) -> Result<Option<Plot>, DrawError> {
        let bounds = |ratio: &Ratio| ratio.interval.map_or([ratio.ratio; 2], |ends| [ends.low, ends.high]);
        let ends = |ratio: &Ratio| bounds(ratio).into_iter().chain([ratio.ratio]);
        let name = format!("{} / {}", pair.arm, pair.baseline);
        let values = pair.ratios.iter().flat_map(ends).chain([1.0]);
        let Some(x) = Axis::log(&name, AxisUnit::Plain, values).filter(|_| !pair.ratios.is_empty()) else {
            return Ok(None);
        };
        let label = |ratio: &Ratio| {
            let mark = if ratio.primary { "▸ " } else { "" };
            format!("{mark}{}", ratio.figure.name().trim_end_matches(" ms"))
        };
        let y = Axis::words(pair.ratios.iter().map(label).collect());
        let mut layers = vec![Layer::Rule(1.0)];
        for (place, ratio) in pair.ratios.iter().enumerate() {
            let ends = bounds(ratio).map(|end| x.clamp(end));
            let look = better(pair, ratio).map(|arm| self.look(arm));
            layers.push(Layer::Interval { look, at: (ratio.ratio, place as f64), along: Along::X, ends });
        }
        let told = pair.ratios.iter().map(|ratio| {
            let verdict =
                better(pair, ratio).map_or("no difference shown".to_owned(), |arm| format!("{arm} is better"));
            format!("{}: {}, {verdict}.", ratio.figure.noun(), format::ratio(ratio.ratio, ratio.interval))
        });
        let description = told.collect::<Vec<_>>().join(" ");
        let chart = Chart { height: 150 + 44 * pair.ratios.len() as u32, x, y, layers };
        let caption = "The ratio of each figure with its 95 % interval; the line is 1, no difference. A marker is that of the arm which \
             is better, a ring where no difference is shown. ▸ decides.";
        let arms = [pair.baseline.as_str(), pair.arm.as_str()].into_iter();
        self.plot(format!("{name}, figure by figure"), caption, description, &chart, arms).map(Some)
    }

    /// The figure that decides, epoch by epoch.
    fn epochs(&self, point: &Point) -> Result<Option<Plot>, DrawError> {
        let primary = point.pairs.iter().flat_map(|pair| &pair.ratios).find(|ratio| ratio.primary);
        let Some(figure) = primary.map(|ratio| ratio.figure) else { return Ok(None) };
        let of_cell = |cell: &Cell| -> Vec<(f64, f64)> {
            let value = |epoch: &Epoch| Some((f64::from(epoch.epoch) + 1.0, *epoch.figures.get(&figure)?));
            cell.epochs.iter().filter_map(value).collect()
        };
        let cells: Vec<(&str, Vec<(f64, f64)>)> =
            point.cells.iter().map(|cell| (cell.arm.as_str(), of_cell(cell))).collect();
        if cells.iter().all(|(_, points)| points.len() < 2) {
            return Ok(None);
        }
        let all = || cells.iter().flat_map(|(_, points)| points);
        let last = all().map(|point| point.0).fold(1.0, f64::max);
        let Some(y) = Axis::straight(figure.noun(), unit(figure), all().map(|point| point.1)) else { return Ok(None) };
        let x = Axis::between("epoch", AxisUnit::Plain, 0.5, last + 0.5);
        let x = x.ticks_at((1..=last as u32).map(f64::from).collect());
        let mut layers = Vec::new();
        let mut told = Vec::new();
        for (arm, points) in &cells {
            let values: Vec<String> = points.iter().map(|point| format::value(figure, point.1)).collect();
            told.push(format!("{arm}: {}.", values.join(", ")));
            layers.push(Layer::Line(self.look(arm), points.clone()));
            layers.push(Layer::Marks(self.look(arm), points.clone()));
        }
        let chart = Chart { height: HEIGHT, x, y, layers };
        let title = format!("{}, epoch by epoch", format::sentence_case(figure.noun()));
        let caption = "The figure that decides, in the order in which the arms took their turns: a slope that both share is a drift.";
        self.plot(title, caption, told.join(" "), &chart, cells.iter().map(|(arm, _)| *arm)).map(Some)
    }

    /// A gauge of the servers over the first epoch of each arm that was looked at.
    fn timeline(
        &self,
        point: &Point,
        title: &str,
        unit: AxisUnit,
        of: fn(&Moment) -> Option<f64>,
    ) -> Result<Option<Plot>, DrawError> {
        let mut lines: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
        for cell in &point.cells {
            let looks = |timeline: &[Moment]| -> Vec<(f64, f64)> {
                timeline.iter().filter_map(|moment| Some((moment.at_s, of(moment)?))).collect()
            };
            let first = cell.epochs.iter().map(|epoch| looks(&epoch.timeline)).find(|looks| looks.len() > 1);
            lines.extend(first.map(|looks| (cell.arm.as_str(), looks)));
        }
        let all = || lines.iter().flat_map(|(_, points)| points);
        let last = all().map(|point| point.0).fold(0.0, f64::max);
        let highest = all().map(|point| point.1).fold(0.0, f64::max);
        if lines.is_empty() || last <= 0.0 {
            return Ok(None);
        }
        let top = if unit == AxisUnit::Share { 1.0 } else { (highest * 1.06).max(1.0) };
        let x = Axis::between("seconds from the begin of the run", AxisUnit::Plain, 0.0, last);
        let y = Axis::between("", unit, 0.0, top);
        let mut layers = Vec::new();
        let mut told = Vec::new();
        for (arm, points) in &lines {
            let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
            let most = if unit == AxisUnit::Share { format!("{:.0} %", most * 100.0) } else { format!("{most:.0}") };
            told.push(format!("{arm}: at most {most}."));
            let step = (points.len() / 6).max(1);
            let marks = points.iter().skip(step / 2).step_by(step).copied().collect();
            layers.push(Layer::Line(self.look(arm), points.clone()));
            layers.push(Layer::Marks(self.look(arm), marks));
        }
        let chart = Chart { height: HEIGHT - 120, x, y, layers };
        let caption = "Over all servers of an arm, in its first epoch.";
        self.plot(title.to_owned(), caption, told.join(" "), &chart, lines.iter().map(|(arm, _)| *arm)).map(Some)
    }

    /// The figures of a sweep against its loads.
    pub(super) fn of_sweep(&self, comparison: &Comparison, sweep: &Sweep) -> Result<Vec<Plot>, DrawError> {
        let has = |figure: &Figure| {
            let cells = || sweep.points.iter().flat_map(|(_, point)| &point.cells);
            cells().any(|cell| cell.figures.iter().any(|one| one.figure == *figure))
        };
        let first = |figures: &[Figure]| figures.iter().copied().find(has);
        let figures = [
            first(&[Figure::TtftP95]),
            first(&[Figure::TpotMedian]),
            first(&[Figure::OutputTokensPerGpu, Figure::OutputTokensPerSecond]),
            first(&[Figure::SloAttainment]),
            first(&[Figure::GoodputPerGpu, Figure::Goodput]),
        ];
        let mut plots = Vec::new();
        for figure in figures.into_iter().flatten() {
            plots.extend(self.against_load(comparison, sweep, figure)?);
        }
        Ok(plots)
    }

    fn against_load(&self, comparison: &Comparison, sweep: &Sweep, figure: Figure) -> Result<Option<Plot>, DrawError> {
        let mut lines: Vec<(&str, Vec<AtLoad>)> = Vec::new();
        for arm in &comparison.arms {
            let at_load = |(load, point): &(f64, &Point)| {
                let cell = point.cells.iter().find(|cell| cell.arm == arm.name)?;
                let found = cell.figures.iter().find(|one| one.figure == figure)?;
                let Bounds { low, high } = found.interval.unwrap_or(Bounds { low: found.value, high: found.value });
                Some(AtLoad { load: *load, value: found.value, ends: [low, high] })
            };
            let points: Vec<_> = sweep.points.iter().filter_map(at_load).collect();
            if !points.is_empty() {
                lines.push((&arm.name, points));
            }
        }
        let loads = || sweep.points.iter().map(|(load, _)| *load);
        let values = lines.iter().flat_map(|(_, points)| points).flat_map(|point| point.ends);
        let y = match unit(figure) {
            AxisUnit::Time => Axis::log(figure.noun(), AxisUnit::Time, values),
            AxisUnit::Plain => Axis::straight(figure.noun(), AxisUnit::Plain, values.chain([0.0])),
            AxisUnit::Share => Some(Axis::between(figure.noun(), AxisUnit::Share, 0.0, 1.0)),
        };
        let (Some(x), Some(y)) = (Axis::log(sweep.unit(), AxisUnit::Plain, loads()), y) else { return Ok(None) };
        let mut layers = Vec::new();
        for crossing in sweep.crossovers.iter().filter(|one| one.figure == figure) {
            let Crossing::At { load, low, high, .. } = &crossing.found else { continue };
            layers.push(Layer::Band(x.clamp(low.unwrap_or(f64::MIN_POSITIVE)), x.clamp(high.unwrap_or(f64::MAX))));
            layers.push(Layer::Rule(x.clamp(*load)));
        }
        let changes = !layers.is_empty();
        let mut told = Vec::new();
        for (arm, points) in &lines {
            let look = self.look(arm);
            let say = |point: &AtLoad| format!("{} at {}", format::value(figure, point.value), point.load);
            told.push(format!("{arm}: {}.", points.iter().map(say).collect::<Vec<_>>().join(", ")));
            layers.push(Layer::Line(look, points.iter().map(|point| (point.load, point.value)).collect()));
            layers.extend(points.iter().map(|point| Layer::Interval {
                look: Some(look),
                at: (point.load, point.value),
                along: Along::Y,
                ends: point.ends.map(|end| y.clamp(end)),
            }));
        }
        let chart = Chart { height: HEIGHT, x: x.ticks_at(loads().collect()), y, layers };
        let title = format!("{} against load", format::sentence_case(figure.noun()));
        let caption = if changes {
            "Means of epochs with their 95 % intervals. A line from top to bottom is the load where the better arm changes, in the band \
             of its 95 % interval."
        } else {
            "Means of epochs with their 95 % intervals."
        };
        self.plot(title, caption, told.join(" "), &chart, lines.iter().map(|(arm, _)| *arm)).map(Some)
    }
}

/// An arm's figure at a load, and the ends of its interval, which without one are the figure.
struct AtLoad {
    load: f64,
    value: f64,
    ends: [f64; 2],
}

/// The better arm by this figure, if a difference is shown.
fn better<'a>(pair: &'a Pair, ratio: &Ratio) -> Option<&'a str> {
    let arm = (ratio.ratio > 1.0) == ratio.figure.more_is_better();
    ratio.shown.then_some(if arm { &pair.arm } else { &pair.baseline })
}

fn unit(figure: Figure) -> AxisUnit {
    match figure {
        Figure::SloAttainment | Figure::SloMisses => AxisUnit::Share,
        _ if figure.is_time() => AxisUnit::Time,
        _ => AxisUnit::Plain,
    }
}

/// Loads that differ in their rate, or their concurrency, alone.
pub(super) struct Sweep<'a> {
    axis: LoadAxis,
    points: Vec<(f64, &'a Point)>,
    /// The loads at which the better arm changes.
    crossovers: Vec<&'a Crossover>,
}

impl<'a> Sweep<'a> {
    /// The sweeps of a comparison: of two loads at least.
    pub(super) fn all(comparison: &'a Comparison) -> Vec<Sweep<'a>> {
        let mut sweeps: Vec<Sweep> = Vec::new();
        for point in &comparison.points {
            let (axis, load) = match point.offered {
                Some(Offered::Rate(rate)) => (LoadAxis::Rate, rate),
                Some(Offered::Concurrency(count)) => (LoadAxis::Concurrency, f64::from(count)),
                _ => continue,
            };
            let same = |sweep: &&mut Sweep| {
                let (_, first) = sweep.points[0];
                let key = |point: &Point| {
                    (point.input_len, point.output_len, point.live_split, point.max_concurrency, point.burstiness)
                };
                sweep.axis == axis && key(first) == key(point) && first.dataset == point.dataset
            };
            match sweeps.iter_mut().find(same) {
                Some(sweep) => sweep.points.push((load, point)),
                None => sweeps.push(Sweep { axis, points: vec![(load, point)], crossovers: Vec::new() }),
            }
        }
        sweeps.retain(|sweep| sweep.points.len() > 1);
        // A crossover does not tell of which lengths it is; and bands of several arms would hide each other.
        let axes: Vec<LoadAxis> = sweeps.iter().map(|sweep| sweep.axis).collect();
        let alone = |axis: LoadAxis| axes.iter().filter(|other| **other == axis).count() == 1;
        for sweep in sweeps.iter_mut().filter(|sweep| comparison.arms.len() == 2 && alone(sweep.axis)) {
            sweep.crossovers = comparison.crossovers.iter().filter(|one| one.axis == sweep.axis).collect();
        }
        sweeps
    }

    fn unit(&self) -> &'static str {
        match self.axis {
            LoadAxis::Rate => "requests/s offered",
            LoadAxis::Concurrency => "requests under way",
        }
    }
}
