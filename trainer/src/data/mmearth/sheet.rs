//! A contact sheet: all modalities of some tiles side by side, missing pixels hatched.

use anyhow::{Result, ensure};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X13, FONT_7X13};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::text::Alignment;

use super::inspect::stored;
use super::modality::Modality;
use super::release::Release;
use super::split::coordinates;
use super::values::Values;
use crate::chart::{Canvas, INK, MUTED};

/// Most tiles of a sheet.
pub const MOST: usize = 64;
const CELL: u32 = 112;
const GAP: u32 = 6;
const HEAD: u32 = 26;
const TEXT: u32 = 220;

/// How a picture is made of a modality's channels.
enum Look {
    /// Three channels as red, green and blue, each from 0 to this.
    Colour([usize; 3], f32),
    /// One channel from dark to light between these values.
    Grey(usize, f32, f32),
    /// One channel from dark to light between the tile's own extremes.
    Stretched(usize),
    /// A colour a class.
    Classes(&'static [[u8; 3]]),
}

const DYNAMIC_WORLD: [[u8; 3]; 9] = [
    [65, 155, 223],
    [57, 125, 73],
    [136, 176, 83],
    [122, 135, 198],
    [228, 150, 53],
    [223, 195, 90],
    [196, 40, 27],
    [165, 155, 143],
    [179, 159, 225],
];
const WORLDCOVER: [[u8; 3]; 11] = [
    [0, 100, 0],
    [255, 187, 34],
    [255, 255, 76],
    [240, 150, 255],
    [250, 0, 0],
    [180, 180, 180],
    [240, 240, 240],
    [0, 100, 200],
    [0, 150, 160],
    [0, 207, 117],
    [250, 230, 160],
];
const SCENE: [[u8; 3]; 12] = [
    [0, 0, 0],
    [255, 0, 0],
    [47, 47, 47],
    [100, 50, 0],
    [0, 160, 0],
    [255, 230, 90],
    [0, 0, 255],
    [128, 128, 128],
    [192, 192, 192],
    [255, 255, 255],
    [100, 200, 255],
    [255, 150, 255],
];

const COLUMNS: [(&str, Modality, Look); 16] = [
    ("S2 B4 B3 B2", Modality::Sentinel2, Look::Colour([3, 2, 1], 3000.0)),
    ("S2 B8 B4 B3", Modality::Sentinel2, Look::Colour([8, 3, 2], 4500.0)),
    ("S2 B12 B8 B4", Modality::Sentinel2, Look::Colour([12, 8, 3], 4500.0)),
    ("S1 asc VV", Modality::Sentinel1, Look::Grey(0, -25.0, 0.0)),
    ("S1 asc VH", Modality::Sentinel1, Look::Grey(1, -32.0, -7.0)),
    ("S1 desc VV", Modality::Sentinel1, Look::Grey(4, -25.0, 0.0)),
    ("S1 desc VH", Modality::Sentinel1, Look::Grey(5, -32.0, -7.0)),
    ("elevation", Modality::Aster, Look::Stretched(0)),
    ("slope", Modality::Aster, Look::Grey(1, 0.0, 45.0)),
    ("canopy height", Modality::CanopyHeightEth, Look::Grey(0, 0.0, 40.0)),
    ("canopy std", Modality::CanopyHeightEth, Look::Grey(1, 0.0, 15.0)),
    ("Dynamic World", Modality::DynamicWorld, Look::Classes(&DYNAMIC_WORLD)),
    ("WorldCover", Modality::EsaWorldcover, Look::Classes(&WORLDCOVER)),
    ("QA60", Modality::Sentinel2Cloudmask, Look::Grey(0, 0.0, 2048.0)),
    ("cloud prob.", Modality::Sentinel2Cloudprod, Look::Grey(0, 0.0, 100.0)),
    ("SCL", Modality::Sentinel2Scl, Look::Classes(&SCENE)),
];

/// The sheet of `rows`, a line each; at most [`MOST`].
///
/// # Errors
/// If there are more or no rows, or one cannot be read.
pub fn sheet(release: &Release, rows: &[usize]) -> Result<Canvas> {
    ensure!((1..=MOST).contains(&rows.len()), "a sheet shows 1 to {MOST} tiles, not {}", rows.len());
    let held = release.modalities();
    let columns: Vec<_> = COLUMNS.iter().filter(|(_, modality, _)| held.contains(modality)).collect();
    let width = TEXT + columns.len() as u32 * (CELL + GAP);
    let mut canvas = Canvas::new(width, HEAD + rows.len() as u32 * (CELL + GAP));
    for (at, (title, ..)) in columns.iter().enumerate() {
        let x = TEXT + at as u32 * (CELL + GAP);
        canvas.text(title, x as i32, HEAD as i32 / 2, &FONT_7X13, INK, Alignment::Left);
    }
    for (line, &row) in rows.iter().enumerate() {
        let y = HEAD + line as u32 * (CELL + GAP);
        for (at, text) in words(release, row)?.iter().enumerate() {
            let colour = if at == 0 { INK } else { MUTED };
            let text: String = text.chars().take(35).collect();
            canvas.text(&text, 6, y as i32 + 8 + 15 * at as i32, &FONT_6X13, colour, Alignment::Left);
        }
        for (at, (_, modality, look)) in columns.iter().enumerate() {
            let values = stored(release, row, *modality)?;
            let x = TEXT + at as u32 * (CELL + GAP);
            picture(&mut canvas, x, y, &values, release.side(), look);
        }
    }
    Ok(canvas)
}

fn picture(canvas: &mut Canvas, x: u32, y: u32, values: &Values, side: usize, look: &Look) {
    let plane = side * side;
    let number = |channel: usize, at: usize| match values {
        Values::Numbers(values) => values[channel * plane + at],
        Values::Classes(_) => f32::NAN,
    };
    let shade = |v: f32, low: f32, high: f32| (255.0 * ((v - low) / (high - low)).clamp(0.0, 1.0)) as u8;
    let extremes = match look {
        Look::Stretched(channel) => (0..plane)
            .map(|at| number(*channel, at))
            .filter(|v| !v.is_nan())
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v))),
        _ => (0.0, 0.0),
    };
    for row in 0..CELL {
        for column in 0..CELL {
            let at = row as usize * side / CELL as usize * side + column as usize * side / CELL as usize;
            let grey = |v: f32, low: f32, high: f32| (!v.is_nan()).then(|| [shade(v, low, high); 3]);
            let colour = match look {
                Look::Colour(channels, high) => {
                    let of = channels.map(|c| number(c, at));
                    (!of.iter().any(|v| v.is_nan())).then(|| of.map(|v| shade(v, 0.0, *high)))
                }
                Look::Grey(channel, low, high) => grey(number(*channel, at), *low, *high),
                Look::Stretched(channel) => grey(number(*channel, at), extremes.0, extremes.1.max(extremes.0 + 1.0)),
                Look::Classes(colours) => match values {
                    Values::Classes(classes) => usize::try_from(classes[at]).ok().and_then(|c| colours.get(c)).copied(),
                    Values::Numbers(_) => None,
                },
            };
            let hatch = if (row + column) / 4 % 2 == 0 { [235; 3] } else { [205; 3] };
            let [r, g, b] = colour.unwrap_or(hatch);
            canvas.put(x + column, y + row, Rgb888::new(r, g, b));
        }
    }
}

/// What is known of the tile as a whole, a line each.
fn words(release: &Release, row: usize) -> Result<Vec<String>> {
    let class = |modality| -> Result<Option<usize>> {
        Ok(match stored(release, row, modality)? {
            Values::Classes(class) => class.first().and_then(|c| usize::try_from(*c).ok()),
            Values::Numbers(_) => None,
        })
    };
    let numbers = |modality| -> Result<Vec<f32>> {
        Ok(match stored(release, row, modality)? {
            Values::Numbers(values) => values,
            Values::Classes(_) => Vec::new(),
        })
    };
    let or_missing = |text: Option<String>| text.unwrap_or_else(|| "missing".into());
    let biome = class(Modality::Biome)?.and_then(|c| Modality::Biome.class_name(c)).map(str::to_owned);
    let place = coordinates(release, row)?.map(|(lat, lon)| format!("{lat:.3}, {lon:.3}"));
    let month = numbers(Modality::Month)?;
    let twelfth = f64::from(month[0]).atan2(f64::from(month[1])) / std::f64::consts::TAU * 12.0;
    let month = (!twelfth.is_nan()).then(|| format!("month {}", (twelfth.round() as i64 + 11).rem_euclid(12) + 1));
    let era5 = numbers(Modality::Era5)?;
    let unless_nan = |value: f32, text: String| if value.is_nan() { "missing".into() } else { text };
    let warmth = unless_nan(era5[4], format!("{:.1} C", era5[4] - 273.15));
    let rain = unless_nan(era5[7], format!("{:.0} mm a month", 1000.0 * era5[7]));
    let climate = format!("{warmth}, {rain}");
    Ok(vec![
        format!("row {row}, {} {}", release.id(row), release.level(row).name()),
        or_missing(place),
        or_missing(month),
        or_missing(biome),
        or_missing(class(Modality::EcoRegion)?.map(|c| format!("ecoregion {c}"))),
        climate,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pixels_are_hatched() {
        let mut canvas = Canvas::new(CELL, CELL);
        let values = Values::Numbers(vec![0.0, 10.0, f32::NAN, 5.0]);
        picture(&mut canvas, 0, 0, &values, 2, &Look::Grey(0, 0.0, 10.0));
        let at = |row: u32, column: u32| canvas.pixel(column, row);
        assert_eq!((at(0, 0), at(0, CELL - 1), at(CELL - 1, CELL - 1)), ([0; 3], [255; 3], [127; 3]));
        assert!([at(CELL - 1, 0), at(CELL - 5, 0)].iter().all(|p| *p == [235; 3] || *p == [205; 3]));
    }
}
