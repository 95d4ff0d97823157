//! A picture of the arena over a run: places from left to right, regions stacked as they lie in memory.

use std::convert::Infallible;

use anyhow::{Context, Result};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X10, FONT_6X13, FONT_8X13_BOLD};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use nadir::encoder::Encoder;
use nadir::model::{Place, Precision};

use crate::inspect::thousands;
use crate::options::passes_text;
use crate::plan::place_plans;

const INK: Rgb888 = Rgb888::new(34, 40, 49);
const GRID: Rgb888 = Rgb888::new(220, 224, 230);
/// Names of regions and their colours, which stay apart for most kinds of colour vision.
const COLOURS: [(&str, Rgb888); 11] = [
    ("map", Rgb888::new(0, 114, 178)),
    ("hidden", Rgb888::new(230, 159, 0)),
    ("rows", Rgb888::new(86, 180, 233)),
    ("values", Rgb888::new(0, 158, 115)),
    ("strip", Rgb888::new(0, 158, 115)),
    ("bytes", Rgb888::new(204, 121, 167)),
    ("bias", Rgb888::new(213, 94, 0)),
    ("squares", Rgb888::new(123, 82, 171)),
    ("multipliers", Rgb888::new(140, 86, 75)),
    ("aside", Rgb888::new(123, 82, 171)),
    ("wide", Rgb888::new(204, 121, 167)),
];
const OTHER: Rgb888 = Rgb888::new(120, 120, 120);

/// Width of a place's column, of the margins and of the picture's parts in pixels.
const COLUMN: i32 = 44;
const LEFT: i32 = 80;
const RIGHT: i32 = 120;
const TOP: i32 = 40;
const HEIGHT: i32 = 400;
const BOTTOM: i32 = 30;

struct Canvas {
    width: i32,
    height: i32,
    pixels: Vec<[u8; 3]>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
                self.pixels[(y * self.width + x) as usize] = [colour.r(), colour.g(), colour.b()];
            }
        }
        Ok(())
    }
}

impl Canvas {
    fn bar(&mut self, x: i32, y: i32, width: i32, height: i32, colour: Rgb888) {
        let bar = Rectangle::new(Point::new(x, y), Size::new(width.max(0) as u32, height.max(0) as u32));
        let _ = bar.into_styled(PrimitiveStyle::with_fill(colour)).draw(self);
    }

    fn text(&mut self, text: &str, x: i32, y: i32, font: &MonoFont<'_>, alignment: Alignment) {
        let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Middle).build();
        let _ = Text::with_text_style(text, Point::new(x, y), MonoTextStyle::new(font, INK), style).draw(self);
    }
}

fn colour(name: &str) -> Rgb888 {
    COLOURS.iter().find(|(known, _)| *known == name).map_or(OTHER, |&(_, colour)| colour)
}

/// The round number of bytes between two lines of the grid: at most eight lines.
fn grid_step(bytes: usize) -> usize {
    let mut step = 1024;
    while bytes / step > 8 {
        step *= 2;
    }
    step
}

/// The picture as a PNG file. Bands of less than a pixel show as a line.
///
/// # Errors
/// If the picture cannot be encoded.
pub fn arena(encoder: &Encoder<'_>) -> Result<Vec<u8>> {
    let plans = place_plans(encoder);
    let (model, bytes) = (encoder.model(), encoder.arena_bytes().max(1));
    let width = LEFT + COLUMN * plans.len() as i32 + RIGHT;
    let height = TOP + HEIGHT + BOTTOM;
    let mut canvas = Canvas { width, height, pixels: vec![[255; 3]; (width * height) as usize] };
    let level = |byte: usize| TOP + HEIGHT - (byte as u128 * HEIGHT as u128 / bytes as u128) as i32;

    let passes = match model.precision() {
        Precision::Int8 => format!(", passes {}", passes_text(encoder.passes())),
        Precision::F32 | Precision::F16 => String::new(),
    };
    let name: String = model.name().chars().filter(|c| !c.is_control()).collect();
    let title = format!("{name} {}: {} bytes of arena{passes}", model.precision().name(), thousands(bytes as u64));
    canvas.text(&title, LEFT, TOP / 2, &FONT_8X13_BOLD, Alignment::Left);
    let step = grid_step(bytes);
    for line in (0..=bytes).step_by(step) {
        canvas.bar(LEFT, level(line), COLUMN * plans.len() as i32, 1, GRID);
        canvas.text(&format!("{} KiB", line / 1024), LEFT - 8, level(line), &FONT_6X10, Alignment::Right);
    }
    let mut shown: Vec<&str> = Vec::new();
    for (i, plan) in plans.iter().enumerate() {
        let x = LEFT + COLUMN * i as i32;
        for region in &plan.regions {
            let (top, bottom) = (level(region.offset + region.bytes), level(region.offset));
            canvas.bar(x + 2, top, COLUMN - 4, (bottom - top).max(1), colour(region.name));
            if !shown.contains(&region.name) {
                shown.push(region.name);
            }
        }
        let label = match plan.place {
            Place::Stem => "stem".to_owned(),
            Place::Downsample { stage } => format!("down {stage}"),
            Place::Block { stage, block } => format!("{stage}.{block}"),
            Place::Head => "head".to_owned(),
        };
        canvas.text(&label, x + COLUMN / 2, TOP + HEIGHT + 14, &FONT_6X10, Alignment::Center);
    }
    canvas.bar(LEFT, level(bytes), COLUMN * plans.len() as i32, 1, INK);
    for (i, name) in shown.iter().rev().enumerate() {
        let (x, y) = (width - RIGHT + 12, TOP + 18 * i as i32);
        canvas.bar(x, y, 12, 12, colour(name));
        canvas.text(name, x + 18, y + 6, &FONT_6X13, Alignment::Left);
    }
    encode(&canvas).context("cannot encode the picture")
}

fn encode(canvas: &Canvas) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, canvas.width as u32, canvas.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(canvas.pixels.as_flattened())?;
    writer.finish()?;
    Ok(bytes)
}
