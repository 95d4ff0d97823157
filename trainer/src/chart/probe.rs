//! Pictures of probes: the confusion matrix, and features on a plane.

use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_8X13_BOLD, FONT_9X15_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{PrimitiveStyle, Rectangle};
use embedded_graphics::text::Alignment;

use super::{Canvas, INK, MUTED, PALETTE, SCALE, blend};
use crate::probe::Confusion;

/// A probe's confusion matrix: rows are true classes, columns predictions, each cell the share of its row in per cent.
pub fn confusion(confusion: &Confusion, names: &[String], title: &str) -> Canvas {
    const CELL: i32 = 46;
    let label = names.iter().map(|n| n.chars().count()).max().unwrap_or(1).min(24) as i32 * 7;
    let n = names.len() as i32;
    let (left, top) = (label + 28, 64);
    let mut canvas = Canvas::new((left + n * CELL + 24).max(420) as u32, (top + n * CELL + 60) as u32);
    canvas.text(title, 16, 24, &FONT_9X15_BOLD, INK, Alignment::Left);
    for (row, counts) in confusion.counts.iter().enumerate() {
        let all = counts.iter().sum::<u64>().max(1) as f64;
        let y = top + row as i32 * CELL;
        let name: String = names[row].chars().take(24).collect();
        canvas.text(&name, left - 10, y + CELL / 2, &FONT_7X13, INK, Alignment::Right);
        for (column, count) in counts.iter().enumerate() {
            let share = *count as f64 / all;
            let x = left + column as i32 * CELL;
            let cell = Rectangle::new(Point::new(x, y), Size::new(CELL as u32 - 2, CELL as u32 - 2));
            let colour = blend(PALETTE[if row == column { 0 } else { 1 }], 0.04 + 0.96 * share);
            let _ = cell.into_styled(PrimitiveStyle::with_fill(colour)).draw(&mut canvas);
            let ink = if share > 0.55 { Rgb888::WHITE } else { INK };
            if *count > 0 {
                let text = format!("{:.0}", 100.0 * share);
                canvas.text(&text, x + CELL / 2 - 1, y + CELL / 2, &FONT_7X13, ink, Alignment::Center);
            }
        }
    }
    for column in 0..n {
        let x = left + column * CELL + CELL / 2 - 1;
        canvas.text(&column.to_string(), x, top - 10, &FONT_8X13_BOLD, MUTED, Alignment::Center);
    }
    let below = top + n * CELL + 24;
    canvas.text("columns: predicted class, in the order of the rows", 16, below, &FONT_7X13, MUTED, Alignment::Left);
    canvas
}

/// Features on a plane: a dot a tile, coloured by its class; the picture is square in the features' own scale.
pub fn map(points: &[[f32; 2]], classes: &[usize], names: &[String], title: &str) -> Canvas {
    const SIDE: f64 = 560.0;
    const TOP: f64 = 56.0;
    let range = |axis: usize| {
        let values = points.iter().map(|p| f64::from(p[axis]));
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ranges = [range(0), range(1)];
    let widest = ranges.iter().map(|(low, high)| high - low).fold(0.0, f64::max).max(1e-9);
    let at = |p: &[f32; 2], axis: usize| {
        let (low, high) = ranges[axis];
        (f64::from(p[axis]) - (low + high) / 2.0) / widest * (SIDE - 24.0)
    };
    let height = (TOP + SIDE + 12.0).max(TOP + 24.0 + 20.0 * names.len() as f64) as u32;
    let mut large = Canvas::new(820 * SCALE, height * SCALE);
    let diameter = if points.len() > 800 { 16 } else { 24 };
    for (p, class) in points.iter().zip(classes) {
        let place = (12.0 + SIDE / 2.0 + at(p, 0), TOP + SIDE / 2.0 - at(p, 1));
        large.dot(place, PALETTE[class % PALETTE.len()], diameter);
    }
    let mut canvas = large.shrunk();
    canvas.text(title, 16, 24, &FONT_9X15_BOLD, INK, Alignment::Left);
    for (class, name) in names.iter().enumerate() {
        let y = TOP as i32 + 18 + 20 * class as i32;
        let swatch = Rectangle::new(Point::new(600, y - 5), Size::new(10, 10));
        let colour = PALETTE[class % PALETTE.len()];
        let _ = swatch.into_styled(PrimitiveStyle::with_fill(colour)).draw(&mut canvas);
        let name: String = name.chars().take(26).collect();
        canvas.text(&name, 620, y, &FONT_7X13, INK, Alignment::Left);
    }
    canvas
}
