//! Pictures of a run: the loss curves; of a probe: its confusion matrix, and features on a plane.

mod probe;

use std::convert::Infallible;

use anyhow::{Context, Result};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X13, FONT_7X13, FONT_9X15_BOLD};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, Polyline, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

pub use probe::{confusion, map};

use crate::run::{Metrics, Span};

/// Lines are drawn this many times larger and then averaged, so that they come out smooth.
const SCALE: u32 = 4;
pub(crate) const INK: Rgb888 = Rgb888::new(34, 40, 49);
pub(crate) const MUTED: Rgb888 = Rgb888::new(110, 118, 129);
const GRID: Rgb888 = Rgb888::new(230, 233, 238);
/// Colours that stay apart for most kinds of colour vision; more tasks than colours start again at the first.
const PALETTE: [Rgb888; 12] = [
    Rgb888::new(0, 114, 178),
    Rgb888::new(213, 94, 0),
    Rgb888::new(0, 158, 115),
    Rgb888::new(204, 121, 167),
    Rgb888::new(230, 159, 0),
    Rgb888::new(86, 180, 233),
    Rgb888::new(123, 82, 171),
    Rgb888::new(140, 86, 75),
    Rgb888::new(188, 189, 34),
    Rgb888::new(31, 160, 160),
    Rgb888::new(214, 39, 90),
    Rgb888::new(90, 100, 115),
];

/// A picture in RGB.
pub struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![[255; 3]; (width * height) as usize] }
    }

    /// The picture as a PNG file.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("cannot encode the picture")?;
        writer.write_image_data(self.pixels.as_flattened()).context("cannot encode the picture")?;
        writer.finish().context("cannot encode the picture")?;
        Ok(bytes)
    }

    /// Sets a pixel; outside the picture nothing happens.
    pub(crate) fn put(&mut self, x: u32, y: u32, colour: Rgb888) {
        let _ = self.draw_iter([Pixel(Point::new(x as i32, y as i32), colour)]);
    }

    /// The pixel at column `x`, row `y`.
    #[cfg(test)]
    pub(crate) fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        self.pixels[(y * self.width + x) as usize]
    }

    /// The picture at `1 / SCALE` of its size, each pixel the mean of those that it covers.
    fn shrunk(&self) -> Self {
        let (width, height) = (self.width / SCALE, self.height / SCALE);
        let mean = |at: u32| {
            let (x, y) = (at % width * SCALE, at / width * SCALE);
            let mut sum = [0u32; 3];
            for row in y..y + SCALE {
                for pixel in &self.pixels[(row * self.width + x) as usize..][..SCALE as usize] {
                    sum.iter_mut().zip(pixel).for_each(|(s, v)| *s += u32::from(*v));
                }
            }
            sum.map(|s| ((s + SCALE * SCALE / 2) / (SCALE * SCALE)) as u8)
        };
        Self { width, height, pixels: (0..width * height).map(mean).collect() }
    }

    pub(crate) fn text(&mut self, text: &str, x: i32, y: i32, font: &MonoFont, colour: Rgb888, alignment: Alignment) {
        let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Middle).build();
        let character = MonoTextStyle::new(font, colour);
        let _ = Text::with_text_style(text, Point::new(x, y), character, style).draw(self);
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb888, width: u32) {
        let _ = Line::new(scaled(from), scaled(to)).into_styled(PrimitiveStyle::with_stroke(colour, width)).draw(self);
    }

    fn curve(&mut self, points: &[(f64, f64)], colour: Rgb888, width: u32) {
        let points: Vec<_> = points.iter().copied().map(scaled).collect();
        let _ = Polyline::new(&points).into_styled(PrimitiveStyle::with_stroke(colour, width)).draw(self);
    }

    fn dot(&mut self, at: (f64, f64), colour: Rgb888, diameter: u32) {
        let circle = Circle::with_center(scaled(at), diameter);
        let _ = circle.into_styled(PrimitiveStyle::with_fill(colour)).draw(self);
    }
}

fn scaled((x, y): (f64, f64)) -> Point {
    Point::new((x * f64::from(SCALE)).round() as i32, (y * f64::from(SCALE)).round() as i32)
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if (0..self.width as i32).contains(&x) && (0..self.height as i32).contains(&y) {
                self.pixels[y as usize * self.width as usize + x as usize] = [colour.r(), colour.g(), colour.b()];
            }
        }
        Ok(())
    }
}

/// One curve: means over intervals, and over epochs.
struct Series {
    name: String,
    colour: Rgb888,
    intervals: Vec<(f64, f64)>,
    epochs: Vec<(f64, f64)>,
}

impl Series {
    fn of(metrics: &[Metrics], name: &str, colour: Rgb888, value: impl Fn(&Metrics) -> Option<f64>) -> Self {
        let points = |kind| {
            let wanted = metrics.iter().filter(|m| m.kind == kind);
            wanted.filter_map(|m| Some((m.epoch, value(m)?))).filter(|(_, v)| v.is_finite()).collect()
        };
        let (intervals, epochs) = (points(Span::Interval), points(Span::Epoch));
        Self { name: name.to_owned(), colour, intervals, epochs }
    }

    fn last(&self) -> Option<f64> {
        self.epochs.last().or(self.intervals.last()).map(|p| p.1)
    }
}

/// Where a plot stands on the canvas, and what it shows.
struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (self.left + across * self.width, self.top + (1.0 - up) * self.height)
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

/// The loss curves of a run: what is minimised on the left, every task's own loss on the right. Thin lines are means over
/// intervals, thick ones over epochs.
pub fn losses(metrics: &[Metrics]) -> Canvas {
    const WIDTH: u32 = 1180;
    const HEIGHT: u32 = 480;
    let total = vec![Series::of(metrics, "total", INK, |m| Some(m.loss))];
    let names: std::collections::BTreeSet<&String> = metrics.iter().flat_map(|m| m.tasks.keys()).collect();
    let tasks: Vec<_> = names
        .into_iter()
        .enumerate()
        .map(|(i, name)| Series::of(metrics, name, PALETTE[i % PALETTE.len()], |m| m.tasks.get(name).copied()))
        .collect();
    let epochs = metrics.iter().map(|m| m.epoch).fold(0.0, f64::max).max(1e-3);
    let plot = |left: f64, width: f64, series: &[Series]| Plot {
        left,
        top: 64.0,
        width,
        height: f64::from(HEIGHT) - 64.0 - 62.0,
        x: (0.0, epochs),
        y: range(series),
    };
    let plots = [(plot(72.0, 380.0, &total), &total), (plot(536.0, 410.0, &tasks), &tasks)];

    let mut large = Canvas::new(WIDTH * SCALE, HEIGHT * SCALE);
    for (plot, series) in &plots {
        draw_lines(&mut large, plot, series);
    }
    let mut canvas = large.shrunk();
    for (title, (plot, _)) in ["Total loss", "Loss of each task"].into_iter().zip(&plots) {
        draw_words(&mut canvas, plot, title);
    }
    legend(&mut canvas, 976, &tasks);
    canvas
}

/// From a little below the smallest to a little above the largest value.
fn range(series: &[Series]) -> (f64, f64) {
    let values = || series.iter().flat_map(|s| s.epochs.iter().chain(&s.intervals)).map(|p| p.1);
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = ((high - low) * 0.06).max(high.abs() * 0.01).max(1e-6);
    let floor = if low >= 0.0 && low - margin < 0.25 * high { 0.0 } else { low - margin };
    (floor, high + margin)
}

fn draw_lines(canvas: &mut Canvas, plot: &Plot, series: &[Series]) {
    let right = plot.left + plot.width;
    for tick in ticks(plot.y, 6) {
        let (_, y) = plot.at((0.0, tick));
        canvas.line((plot.left, y), (right, y), GRID, SCALE);
    }
    for tick in ticks(plot.x, 7) {
        let (x, _) = plot.at((tick, 0.0));
        canvas.line((x, plot.bottom()), (x, plot.bottom() + 5.0), MUTED, SCALE);
    }
    for one in series {
        let place = |points: &[(f64, f64)]| points.iter().map(|p| plot.at(*p)).collect::<Vec<_>>();
        let whole = one.epochs.len() > 1;
        let (faint, strong) = (blend(one.colour, 0.3), one.colour);
        canvas.curve(&place(&one.intervals), if whole { faint } else { strong }, if whole { SCALE } else { 7 });
    }
    for one in series.iter().filter(|s| s.epochs.len() > 1) {
        let points: Vec<_> = one.epochs.iter().map(|p| plot.at(*p)).collect();
        canvas.curve(&points, one.colour, 8);
        if points.len() <= 40 {
            points.iter().for_each(|p| canvas.dot(*p, one.colour, 18));
        }
    }
    canvas.line((plot.left, plot.top), (plot.left, plot.bottom()), MUTED, SCALE);
    canvas.line((plot.left, plot.bottom()), (right, plot.bottom()), MUTED, SCALE);
}

fn draw_words(canvas: &mut Canvas, plot: &Plot, title: &str) {
    let middle = (plot.left + plot.width / 2.0) as i32;
    canvas.text(title, plot.left as i32, plot.top as i32 - 30, &FONT_9X15_BOLD, INK, Alignment::Left);
    canvas.text("loss", plot.left as i32 - 8, plot.top as i32 - 12, &FONT_7X13, MUTED, Alignment::Right);
    canvas.text("epoch", middle, plot.bottom() as i32 + 40, &FONT_7X13, MUTED, Alignment::Center);
    let y = ticks(plot.y, 6);
    for tick in &y {
        let (_, at) = plot.at((0.0, *tick));
        canvas.text(&number(*tick, step(&y)), plot.left as i32 - 8, at as i32, &FONT_6X13, MUTED, Alignment::Right);
    }
    let x = ticks(plot.x, 7);
    for tick in &x {
        let (at, _) = plot.at((*tick, 0.0));
        let below = plot.bottom() as i32 + 16;
        canvas.text(&number(*tick, step(&x)), at as i32, below, &FONT_6X13, MUTED, Alignment::Center);
    }
}

fn legend(canvas: &mut Canvas, x: i32, series: &[Series]) {
    for (i, one) in series.iter().enumerate() {
        let y = 74 + 22 * i as i32;
        let swatch = Rectangle::new(Point::new(x, y - 2), Size::new(16, 4));
        let _ = swatch.into_styled(PrimitiveStyle::with_fill(one.colour)).draw(canvas);
        let name: String = one.name.chars().take(17).collect();
        canvas.text(&name, x + 24, y, &FONT_7X13, INK, Alignment::Left);
        let last = one.last().map_or(String::new(), |v| format!("{v:.3}"));
        canvas.text(&last, x + 190, y, &FONT_7X13, MUTED, Alignment::Right);
    }
}

/// Round numbers inside the range, about `wanted` of them.
fn ticks((low, high): (f64, f64), wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high + step * 1e-9).collect()
}

fn step(ticks: &[f64]) -> f64 {
    if ticks.len() > 1 { ticks[1] - ticks[0] } else { 1.0 }
}

/// As many decimals as the step between ticks needs.
fn number(value: f64, step: f64) -> String {
    let decimals = (-step.log10() + 1e-9).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

/// `colour` with this strength on white.
fn blend(colour: Rgb888, strength: f64) -> Rgb888 {
    let mix = |v: u8| (255.0 + (f64::from(v) - 255.0) * strength).round() as u8;
    Rgb888::new(mix(colour.r()), mix(colour.g()), mix(colour.b()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let near = |a: Vec<f64>, b: &[f64]| {
            assert_eq!(a.len(), b.len(), "{a:?}");
            a.iter().zip(b).for_each(|(x, y)| assert!((x - y).abs() < 1e-9, "{a:?}"));
        };
        near(ticks((0.0, 1.0), 5), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        near(ticks((-3.0, 11.0), 6), &[0.0, 5.0, 10.0]);
        near(ticks((0.93, 1.01), 4), &[0.94, 0.96, 0.98, 1.0]);
        assert_eq!(number(0.94, 0.02), "0.94");
        assert_eq!(number(5.0, 5.0), "5");
    }

    #[test]
    fn curves_leave_their_colour() {
        let point = |kind, epoch, loss| Metrics {
            kind,
            epoch,
            step: 1,
            loss,
            tasks: [("tiles".to_owned(), loss / 2.0)].into(),
            gradient_norm: 1.0,
            lr: 1e-3,
            tiles_per_second: 1.0,
        };
        let metrics = [point(Span::Epoch, 1.0, 3.0), point(Span::Epoch, 2.0, 1.0)];
        let canvas = losses(&metrics);
        let holds = |c: Rgb888| canvas.pixels.contains(&[c.r(), c.g(), c.b()]);
        assert!(holds(PALETTE[0]) && holds(INK) && !holds(PALETTE[1]));
        assert!(losses(&[]).png().unwrap().starts_with(b"\x89PNG"));
        let plot = Plot { left: 0.0, top: 0.0, width: 10.0, height: 10.0, x: (0.0, 2.0), y: (0.0, 4.0) };
        assert_eq!(plot.at((1.0, 1.0)), (5.0, 7.5));
    }
}
