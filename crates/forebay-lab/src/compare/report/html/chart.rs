//! A chart as data, and its SVG by plotters. Colours are those that [`style`] and style.css turn into the page's, so that one
//! drawing serves light, dark and print. Arms differ by colour, by dashes and by marker. Pure.

use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::axis::Axis;

/// The reason why a chart was not drawn.
pub type DrawError = DrawingAreaErrorKind<io::Error>;

/// Drawn at about twice the size that it is shown at, since plotters places by whole pixels.
const WIDTH: u32 = 960;
/// The height of most charts.
pub(super) const HEIGHT: u32 = 560;
/// plotters draws text at 1 / 1.24 of the size it is told.
const TEXT: u32 = 33;
/// The width of a character of that text, about.
const CHARACTER: u32 = 14;
const LINE: u32 = 4;
const MARK: i32 = 10;

const INK: RGBColor = RGBColor(0, 0, 0);
const GRID: RGBColor = RGBColor(0xD0, 0xD0, 0xD0);
const GROUND: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// The colour of everything that belongs to no arm.
const QUIET: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Okabe and Ito's colours, told apart also by those who do not see red or green, but for black and yellow, which a light
/// or a dark page swallows; each with its dashes.
const COLOURS: [(RGBColor, &str); 6] = [
    (RGBColor(0x00, 0x72, 0xB2), "none"),
    (RGBColor(0xD5, 0x5E, 0x00), "14 7"),
    (RGBColor(0x00, 0x9E, 0x73), "4 7"),
    (RGBColor(0xCC, 0x79, 0xA7), "18 6 4 6"),
    (RGBColor(0xE6, 0x9F, 0x00), "28 9"),
    (RGBColor(0x56, 0xB4, 0xE9), "9 4"),
];
/// Corners of markers; none: a circle. Five beside six colours: thirty arms look each their own.
const MARKS: [&[(i32, i32)]; 5] = [
    &[],
    &[(-MARK, -MARK), (MARK, -MARK), (MARK, MARK), (-MARK, MARK)],
    &[(0, -MARK - 3), (MARK + 2, MARK), (-MARK - 2, MARK)],
    &[(0, -MARK - 4), (MARK + 4, 0), (0, MARK + 4), (-MARK - 4, 0)],
    &[(0, MARK + 3), (MARK + 2, -MARK), (-MARK - 2, -MARK)],
];

/// The colour, dashes and marker of an arm in every chart of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look(usize);

impl Look {
    /// Of the arm at this place among the names of all arms in their order.
    pub(super) fn of(place: usize) -> Look {
        Look(place)
    }

    fn colour(self) -> RGBColor {
        COLOURS[self.0 % COLOURS.len()].0
    }

    fn marker(self) -> &'static [(i32, i32)] {
        MARKS[self.0 % MARKS.len()]
    }
}

/// The way an interval lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    X,
    Y,
}

/// A part of a chart; points are (x, y) in the axes' units.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Layer {
    /// From one x to another, as high as the chart.
    Band(f64, f64),
    /// A line at an x, as high as the chart.
    Rule(f64),
    Line(Look, Vec<(f64, f64)>),
    Marks(Look, Vec<(f64, f64)>),
    /// A bar between two ends, and at the point an arm's marker, or a ring, which is no arm's.
    Interval {
        look: Option<Look>,
        at: (f64, f64),
        along: Along,
        ends: [f64; 2],
    },
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    pub(super) height: u32,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) layers: Vec<Layer>,
}

type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

impl Chart {
    /// The chart as an `<svg>` to stand in a page.
    pub(super) fn svg(&self) -> Result<String, DrawError> {
        draw((WIDTH, self.height), |area| {
            let longest = self.y.labels().map(|label| label.chars().count()).max().unwrap_or(0) as u32;
            let desc = if self.y.name.is_empty() { 0 } else { 2 * CHARACTER + 16 };
            let mut plane = ChartBuilder::on(area)
                .margin_top(16)
                .margin_right(30)
                .x_label_area_size(if self.x.name.is_empty() { 50 } else { 94 })
                .y_label_area_size(longest * CHARACTER + desc + 44)
                .build_cartesian_2d(self.x.clone(), self.y.clone())?;
            plane
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID.stroke_width(2))
                .axis_style(INK.stroke_width(2))
                .set_all_tick_mark_size(8)
                .label_style(("sans-serif", TEXT))
                .axis_desc_style(("sans-serif", TEXT))
                .x_label_formatter(&|at| self.x.label(*at))
                .y_label_formatter(&|at| self.y.label(*at))
                .x_desc(&self.x.name)
                .y_desc(&self.y.name)
                .draw()?;
            self.layers.iter().try_for_each(|layer| self.layer(layer, &mut plane))
        })
    }

    fn layer(&self, layer: &Layer, plane: &mut Plane) -> Result<(), DrawError> {
        let (bottom, top) = self.y.ends();
        match layer {
            Layer::Band(from, to) => {
                let corners = [(*from, bottom), (*to, top)];
                plane.draw_series([Rectangle::new(corners, QUIET.mix(0.2).filled())])?;
            }
            Layer::Rule(at) => {
                plane.draw_series(LineSeries::new([(*at, bottom), (*at, top)], INK.stroke_width(3)))?;
            }
            Layer::Line(look, points) => {
                plane.draw_series(LineSeries::new(points.iter().copied(), look.colour().stroke_width(LINE)))?;
            }
            Layer::Marks(look, points) => {
                marks(*look, points, plane)?;
            }
            Layer::Interval { look, at: (x, y), along, ends: [low, high] } => {
                let style = look.map_or(QUIET, Look::colour).stroke_width(3);
                match along {
                    Along::X => plane.draw_series([ErrorBar::new_horizontal(*y, *low, *x, *high, style, 16)])?,
                    Along::Y => plane.draw_series([ErrorBar::new_vertical(*x, *low, *y, *high, style, 16)])?,
                };
                if let Some(look) = look {
                    marks(*look, &[(*x, *y)], plane)?;
                } else {
                    plane.draw_series(
                        [GROUND.filled(), QUIET.stroke_width(LINE)].map(|style| Circle::new((*x, *y), MARK, style)),
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// A piece of an arm's line with its marker, for the key beside a chart.
pub(super) fn swatch(look: Look) -> Result<String, DrawError> {
    draw((100, 36), |area| {
        area.draw(&PathElement::new([(2, 18), (98, 18)], look.colour().stroke_width(LINE)))?;
        match look.marker() {
            [] => area.draw(&Circle::new((50, 18), MARK, look.colour().filled())),
            corners => area.draw(&(EmptyElement::at((50, 18)) + Polygon::new(corners, look.colour().filled()))),
        }
    })
}

fn marks(look: Look, points: &[(f64, f64)], plane: &mut Plane) -> Result<(), DrawError> {
    let points = points.iter().copied();
    match look.marker() {
        [] => plane.draw_series(points.map(|point| Circle::new(point, MARK, look.colour().filled())))?,
        corners => plane
            .draw_series(points.map(|point| EmptyElement::at(point) + Polygon::new(corners, look.colour().filled())))?,
    };
    Ok(())
}

fn draw(
    size: (u32, u32),
    what: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        what(&area)?;
        area.present()?;
    }
    // The page says how wide it is; the name space and whole opacity go without saying.
    let inner = svg.split_once('>').map_or("", |(_, inner)| inner.trim_start());
    let (width, height) = size;
    Ok(format!("<svg viewBox=\"0 0 {width} {height}\">{}", inner.replace("opacity=\"1\" ", "")))
}

/// The rules that give each arm's lines their dashes, and turn ink, grid and ground into the page's own.
pub(super) fn style() -> String {
    let hex = |colour: RGBColor| format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
    let mut out = format!(
        "svg text,svg [fill=\"{0}\"]{{fill:currentColor}}svg [stroke=\"{0}\"]{{stroke:currentColor}}\n",
        hex(INK)
    );
    for (colour, name) in [(GRID, "grid"), (GROUND, "card"), (QUIET, "quiet")] {
        let hex = hex(colour);
        out.push_str(&format!(
            "svg [stroke=\"{hex}\"]{{stroke:var(--{name})}}svg [fill=\"{hex}\"]{{fill:var(--{name})}}\n"
        ));
    }
    for (colour, dashes) in COLOURS {
        out.push_str(&format!(
            "svg polyline[stroke=\"{}\"][stroke-width=\"{LINE}\"]{{stroke-dasharray:{dashes}}}\n",
            hex(colour)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::html::axis::AxisUnit;

    #[test]
    fn the_page_has_a_rule_for_each_arm_s_line_and_thirty_arms_look_each_their_own() {
        let axis = || Axis::between("", AxisUnit::Plain, 0.0, 1.0);
        let rules = style();
        let mut seen = std::collections::BTreeSet::new();
        for place in 0..30 {
            let layers = vec![
                Layer::Line(Look::of(place), vec![(0.0, 0.0), (1.0, 1.0)]),
                Layer::Marks(Look::of(place), vec![(0.5, 0.5)]),
            ];
            let svg = Chart { height: HEIGHT, x: axis(), y: axis(), layers }.svg().expect("a chart");
            let line = svg.lines().find(|line| line.starts_with("<polyline") && line.contains("stroke-width=\"4\""));
            let colour = line.and_then(|line| line.split("stroke=\"").nth(1)?.split('"').next()).expect("a colour");
            assert!(rules.contains(&format!("svg polyline[stroke=\"{colour}\"][stroke-width=\"4\"]")), "{colour}");
            assert!(seen.insert(svg), "{place} looks like another");
        }
    }
}
