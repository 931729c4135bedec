//! Charts as SVG.

use std::fmt::Write;

use crate::report::page::escape;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [48.0, 12.0, 26.0, 36.0];
/// Colours that the style sheet has.
const COLOURS: usize = 4;

/// A value at a place, and where it may lie.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) interval: Option<[f64; 2]>,
}

/// A named row of points.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// What a chart shows.
#[derive(Default)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: String,
    pub(super) y: String,
    /// Curves.
    pub(super) series: Vec<Series>,
    /// Groups of bars instead: name, and (from, to, height) of each.
    pub(super) bars: Vec<(String, Vec<[f64; 3]>)>,
    /// Horizontal lines with names.
    pub(super) rules: Vec<(String, f64)>,
    /// Whether the line y = x is drawn.
    pub(super) diagonal: bool,
    /// Ends of both axes; else what the values need.
    pub(super) range: Option<[[f64; 2]; 2]>,
}

/// From values to places in the picture.
struct Scale {
    x: [f64; 2],
    y: [f64; 2],
}

impl Scale {
    fn of(chart: &Chart) -> Self {
        if let Some([x, y]) = chart.range {
            return Self { x, y };
        }
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let bars = || chart.bars.iter().flat_map(|(_, bars)| bars);
        let x = ends(points().map(|p| p.x).chain(bars().flat_map(|bar| [bar[0], bar[1]])));
        let heights = points().flat_map(|p| p.interval.into_iter().flatten().chain([p.y]));
        let rules = chart.rules.iter().map(|(_, y)| *y);
        let y = ends(heights.chain(rules).chain(bars().flat_map(|bar| [0.0, bar[2]])));
        let room = if chart.bars.is_empty() { 0.06 * (y[1] - y[0]) } else { 0.0 };
        Self { x, y: [y[0] - room, y[1] + 0.06 * (y[1] - y[0])] }
    }

    fn x(&self, x: f64) -> f64 {
        MARGIN[0] + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - MARGIN[0] - MARGIN[1])
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - MARGIN[3] - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - MARGIN[2] - MARGIN[3])
    }
}

/// The least and the greatest; a little more around a single value.
fn ends(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        span if span > 0.0 => [low, high],
        // One value only, or none.
        _ if low.is_finite() => [low - 0.5, high + 0.5],
        _ => [0.0, 1.0],
    }
}

/// Round numbers between two ends, about five.
pub(super) fn ticks([low, high]: [f64; 2]) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|tick| *tick <= high + step * 1e-9).collect()
}

/// A number without needless digits.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

impl Chart {
    /// The figure.
    pub(super) fn html(&self) -> String {
        let scale = Scale::of(self);
        let title = escape(&self.title);
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n");
        self.axes(&scale, &mut svg);
        for (number, (name, bars)) in self.bars.iter().enumerate() {
            self.bars(&scale, number, name, bars, &mut svg);
        }
        for (name, y) in &self.rules {
            let [left, right, y] = [scale.x(scale.x[0]), scale.x(scale.x[1]), scale.y(*y)];
            _ = writeln!(svg, "<line class=\"rule\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            _ = writeln!(
                svg,
                "<text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y - 4.0,
                escape(name)
            );
        }
        for (number, series) in self.series.iter().enumerate() {
            curve(&scale, number, series, &mut svg);
        }
        self.legend(&mut svg);
        format!("<figure>\n<figcaption>{title}</figcaption>\n{svg}</svg>\n</figure>\n")
    }

    fn axes(&self, scale: &Scale, svg: &mut String) {
        let [left, right] = scale.x.map(|x| scale.x(x));
        let [bottom, top] = scale.y.map(|y| scale.y(y));
        for tick in ticks(scale.y) {
            let y = scale.y(tick);
            _ = writeln!(svg, "<line class=\"axis\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            let (x, text) = (left - 6.0, short(tick));
            _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", y + 4.0);
        }
        for tick in ticks(scale.x) {
            let x = scale.x(tick);
            let (y, text) = (bottom + 15.0, short(tick));
            _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>");
        }
        if self.diagonal {
            _ = writeln!(
                svg,
                "<line class=\"rule\" x1=\"{left:.1}\" y1=\"{bottom:.1}\" x2=\"{right:.1}\" y2=\"{top:.1}\"/>"
            );
        }
        let (x, y) = (f64::midpoint(left, right), HEIGHT - 4.0);
        _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escape(&self.x));
        _ = writeln!(svg, "<text x=\"4\" y=\"12\">{}</text>", escape(&self.y));
    }

    fn bars(&self, scale: &Scale, number: usize, name: &str, bars: &[[f64; 3]], svg: &mut String) {
        let groups = self.bars.len() as f64;
        for [from, to, height] in bars {
            let whole = scale.x(*to) - scale.x(*from);
            let (width, y) = ((whole - 1.0).max(1.0) / groups, scale.y(*height));
            let (x, tall) = (scale.x(*from) + width * number as f64, scale.y(0.0) - y);
            let class = number % COLOURS;
            let title = escape(format!("{name}: {} to {}: {}", short(*from), short(*to), short(*height)));
            _ = writeln!(
                svg,
                "<rect class=\"bar f{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\">\
                 <title>{title}</title></rect>"
            );
        }
    }

    /// Names of what has more than one colour.
    fn legend(&self, svg: &mut String) {
        let names: Vec<&String> =
            self.series.iter().map(|series| &series.name).chain(self.bars.iter().map(|(name, _)| name)).collect();
        if names.len() < 2 {
            return;
        }
        let mut x = MARGIN[0] + 60.0;
        for (number, name) in names.into_iter().enumerate() {
            let class = number % COLOURS;
            _ = writeln!(svg, "<rect class=\"f{class}\" x=\"{x:.1}\" y=\"4\" width=\"10\" height=\"10\"/>");
            _ = writeln!(svg, "<text x=\"{:.1}\" y=\"13\">{}</text>", x + 14.0, escape(name));
            x += 30.0 + 6.5 * name.chars().count() as f64;
        }
    }
}

fn curve(scale: &Scale, number: usize, series: &Series, svg: &mut String) {
    let class = number % COLOURS;
    let points: Vec<(f64, f64, &Point)> = series.points.iter().map(|p| (scale.x(p.x), scale.y(p.y), p)).collect();
    for (x, _, point) in &points {
        if let Some([low, high]) = point.interval {
            let [low, high] = [low, high].map(|y| scale.y(y));
            _ = writeln!(
                svg,
                "<line class=\"whisker s{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
            );
        }
    }
    let line: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
    _ = writeln!(svg, "<polyline class=\"curve s{class}\" points=\"{}\"/>", line.join(" "));
    for (x, y, point) in &points {
        let title = escape(format!("{}: {} at {}", series.name, short(point.y), short(point.x)));
        _ = writeln!(
            svg,
            "<circle class=\"f{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{title}</title></circle>"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks([0.0, 10.0]), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks([3.0, 17.0]), [5.0, 10.0, 15.0]);
        assert_eq!(ticks([-0.25, 0.25]).len(), 5);
        assert_eq!(ticks([0.31, 0.46]).len(), 3);
    }

    #[test]
    fn a_single_value_and_none_have_a_scale() {
        assert_eq!(ends([2.0].into_iter()), [1.5, 2.5]);
        assert_eq!(ends([f64::NAN].into_iter()), [0.0, 1.0]);
    }

    #[test]
    fn values_lie_where_the_axes_say() {
        let chart = Chart { range: Some([[0.0, 10.0], [0.0, 1.0]]), ..Chart::default() };
        let scale = Scale::of(&chart);
        assert_eq!([scale.x(0.0), scale.x(10.0)], [MARGIN[0], WIDTH - MARGIN[1]]);
        assert_eq!([scale.y(0.0), scale.y(1.0)], [HEIGHT - MARGIN[3], MARGIN[2]]);
    }
}
