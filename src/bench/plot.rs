//! Plots, as SVG: bars with their range, and lines of a sweep.

use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use super::Failure;
use super::experiments::shown;

/// Pixels of a plot's width, of a bar, and of what stands around bars.
const WIDTH: u32 = 860;
const BAR: u32 = 26;
const AROUND: u32 = 60;
/// Pixels of a plot with lines.
const HEIGHT: u32 = 320;
/// Pixels for names beside bars.
const NAMES: u32 = 190;

const COLOURS: [RGBColor; 8] = [
    RGBColor(68, 119, 170),
    RGBColor(238, 102, 119),
    RGBColor(34, 136, 51),
    RGBColor(204, 187, 68),
    RGBColor(102, 204, 238),
    RGBColor(170, 51, 119),
    RGBColor(119, 119, 119),
    RGBColor(153, 85, 0),
];

/// One bar.
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    pub(super) middle: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// One line: its name, and its points by growing abscissa.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

fn failed<E: std::fmt::Display>(error: E) -> Failure {
    Failure(format!("draw: {error}"))
}

/// Bars from 0 on, with what they are counted in below; nothing for none.
pub(super) fn bars(bars: &[Bar<'_>], unit: &str) -> Result<String, Failure> {
    if bars.is_empty() {
        return Ok(String::new());
    }
    let mut out = String::new();
    {
        let height = AROUND + BAR * bars.len() as u32;
        let area = SVGBackend::with_string(&mut out, (WIDTH, height)).into_drawing_area();
        let most = bars.iter().map(|bar| bar.most).fold(0.0, f64::max);
        let count = bars.len() as i32;
        let mut chart = ChartBuilder::on(&area)
            .margin_right(24)
            .margin_top(6)
            .x_label_area_size(44)
            .y_label_area_size(NAMES)
            // Segments go up to the last number itself.
            .build_cartesian_2d(0.0..most.max(1e-9) * 1.05, (0..count - 1).into_segmented())
            .map_err(failed)?;
        // The first one stands at the top.
        let at = |row: usize| count - 1 - row as i32;
        let name = |value: &SegmentValue<i32>| match value {
            SegmentValue::CenterOf(row) if (0..count).contains(row) => {
                let bar = &bars[(count - 1 - row) as usize];
                bar.name.to_owned()
            }
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_labels(bars.len())
            .y_label_formatter(&name)
            .x_label_formatter(&|value| number(*value))
            .x_desc(unit)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        let shapes = bars.iter().enumerate().map(|(row, bar)| {
            let ends = [
                (0.0, SegmentValue::Exact(at(row))),
                (bar.middle, SegmentValue::Exact(at(row) + 1)),
            ];
            let colour = COLOURS[row % COLOURS.len()].mix(0.75).filled();
            let mut shape = Rectangle::new(ends, colour);
            shape.set_margin(4, 4, 0, 0);
            shape
        });
        chart.draw_series(shapes).map_err(failed)?;
        let ranges = bars.iter().enumerate().map(|(row, bar)| {
            let middle = SegmentValue::CenterOf(at(row));
            PathElement::new(
                [(bar.least, middle.clone()), (bar.most, middle)],
                BLACK.stroke_width(2),
            )
        });
        chart.draw_series(ranges).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(out)
}

/// Lines over sizes, which double from one mark to the next.
pub(super) fn lines(lines: &[Line], axis: &str, unit: &str) -> Result<String, Failure> {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let (least, most) = points().fold((f64::INFINITY, 0.0_f64), |(least, most), (x, _)| {
        (least.min(x.log2()), most.max(x.log2()))
    });
    let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
    if !least.is_finite() || lines.is_empty() {
        return Ok(String::new());
    }
    // The names stand beside the lines, not on them.
    let right = most + 0.4 + (most - least) * 0.4;
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(80)
            .build_cartesian_2d(least - 0.2..right, 0.0..highest.max(1e-9) * 1.1)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(40)
            .x_label_formatter(&|x| mark(*x, most, axis))
            .y_label_formatter(&|y| number(*y))
            .x_desc(axis)
            .y_desc(unit)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        for (number, line) in lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points: Vec<(f64, f64)> = line.points.iter().map(|(x, y)| (x.log2(), *y)).collect();
            let dots = points
                .iter()
                .map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(failed)?
                .label(line.name.as_str())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .label_font(("sans-serif", 13))
            .position(SeriesLabelPosition::UpperRight)
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(out)
}

/// What stands below a power of two of the abscissa; nothing elsewhere, and beside the lines.
fn mark(x: f64, most: f64, axis: &str) -> String {
    if (x - x.round()).abs() > 0.01 || x > most + 0.1 {
        return String::new();
    }
    let value = x.exp2().round() as u64;
    match axis {
        "workers" => value.to_string(),
        _ => shown(value),
    }
}

/// Three digits, and no more than that says.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        0.0 => "0".into(),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_chart_names_every_bar() {
        let bar = |name, middle: f64| Bar {
            name,
            middle,
            least: middle * 0.9,
            most: middle * 1.1,
        };
        let svg = bars(&[bar("native", 10.0), bar("a <b> & c", 5.0)], "MiB/s").unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
        assert!(svg.contains("native") && svg.contains("MiB/s"), "{svg}");
        assert!(svg.contains("a &lt;b&gt; &amp; c"), "{svg}");
        bars(&[bar("nothing", 0.0)], "MiB/s").unwrap();
        assert_eq!(bars(&[], "MiB/s").unwrap(), "");
    }

    #[test]
    fn a_line_chart_names_every_line_and_its_sizes() {
        let line = |name: &str| Line {
            name: name.into(),
            points: vec![(65536.0, 1.0), (1048576.0, 3.0)],
        };
        let svg = lines(&[line("map-write"), line("cp")], "size", "MiB/s").unwrap();
        assert!(svg.contains("map-write") && svg.contains("64 KiB"), "{svg}");
        assert_eq!(lines(&[], "size", "MiB/s").unwrap(), "");
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 0.123, 12.34, 1234.5].map(number);
        assert_eq!(shown, ["0", "0.12", "12.3", "1234"]);
    }
}
