//! EuroSAT's folders: a folder a class, in it JPEG images or GeoTIFFs of thirteen bands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nadir_formats::{Pixels, Tiles};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;

use super::folder::Description;
use super::{Stream, generator};

/// The bands of the JPEG images.
pub const RGB: [&str; 3] = ["B4", "B3", "B2"];
/// The bands of the GeoTIFFs in their official order, B8A last.
pub const ALL_BANDS: [&str; 13] = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A"];

/// What a folder holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// Names of the classes, in order.
    pub classes: Vec<String>,
    /// Class and path of every image, in the order of classes and then of names.
    pub files: Vec<(usize, PathBuf)>,
}

/// Finds the images under `folder`. Hidden folders, empty ones and other files are passed over.
///
/// # Errors
/// If there are none, or JPEG beside GeoTIFF.
pub fn find(folder: &Path) -> Result<Images> {
    let list = |path: &Path| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut images = Images { classes: Vec::new(), files: Vec::new() };
    for class in list(folder)?.into_iter().filter(|p| p.is_dir()) {
        let files: Vec<PathBuf> = list(&class)?.into_iter().filter(|p| kind(p).is_some()).collect();
        let name = class.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !files.is_empty() && !name.starts_with('.') {
            images.files.extend(files.into_iter().map(|file| (images.classes.len(), file)));
            images.classes.push(name);
        }
    }
    let shown = folder.display();
    ensure!(
        images.classes.len() > 1,
        "{shown}: has {} folders with images, expected one a class",
        images.classes.len()
    );
    let first = kind(&images.files[0].1);
    if let Some((_, other)) = images.files.iter().find(|(_, file)| kind(file) != first) {
        bail!("{}: JPEG and GeoTIFF are mixed; {} is of the other kind", shown, other.display());
    }
    Ok(images)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Jpeg,
    Tiff,
}

fn kind(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => Some(Kind::Jpeg),
        "tif" | "tiff" => Some(Kind::Tiff),
        _ => None,
    }
}

/// A split drawn from each class alike: 70 % train (0), 10 % validate (1), the rest test (2).
pub fn draw_split(images: &Images, seed: u64) -> Vec<i64> {
    let mut split = vec![0; images.files.len()];
    for class in 0..images.classes.len() {
        let mut rows: Vec<usize> = (0..split.len()).filter(|i| images.files[*i].0 == class).collect();
        rows.shuffle(&mut generator(seed, Stream::Order, class as u64));
        let (train, known) = (rows.len() * 7 / 10, rows.len() * 8 / 10);
        rows[train..known].iter().for_each(|i| split[*i] = 1);
        rows[known..].iter().for_each(|i| split[*i] = 2);
    }
    split
}

/// The split that three lists of file names say, one name a line; -1 for an image in none of them.
///
/// # Errors
/// If a list cannot be read, names an image that is not there, or one that another list has.
pub fn listed_split(images: &Images, lists: &[PathBuf]) -> Result<Vec<i64>> {
    let stem = |path: &Path| path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let rows: HashMap<String, usize> = images.files.iter().enumerate().map(|(row, (_, f))| (stem(f), row)).collect();
    if rows.len() < images.files.len() {
        let twice = images.files.iter().enumerate().find(|(row, (_, file))| rows[&stem(file)] != *row);
        let name = twice.map(|(_, (_, file))| stem(file)).unwrap_or_default();
        bail!("two images are named {name}: lists of names cannot tell them apart");
    }
    let mut split = vec![-1; images.files.len()];
    for (code, list) in (0..).zip(lists) {
        let text = std::fs::read_to_string(list).with_context(|| list.display().to_string())?;
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}: line {}", list.display(), at + 1);
            let row = *rows
                .get(&stem(Path::new(line.trim())))
                .with_context(|| format!("{}: {line} is not there", place()))?;
            ensure!(split[row] == -1, "{}: {line} is in two lists", place());
            split[row] = code;
        }
    }
    Ok(split)
}

/// Reads all images: u8 of three bands or u16 of thirteen.
///
/// # Errors
/// If an image is damaged, not square, or differs from the first in size or bands.
pub fn read(images: &Images) -> Result<Tiles> {
    let one = |(_, path): &(usize, PathBuf)| -> Result<(usize, Pixels)> {
        let context = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(context)?;
        match kind(path) {
            Some(Kind::Tiff) => geotiff(bytes).with_context(context),
            _ => jpeg(bytes).with_context(context),
        }
    };
    let decoded = images.files.par_iter().map(one).collect::<Result<Vec<_>>>()?;
    let (side, first) = &decoded[0];
    let bands = if matches!(first, Pixels::U8(_)) { RGB.len() } else { ALL_BANDS.len() };
    if let Some(at) = decoded.iter().position(|(other, _)| other != side) {
        let (path, other) = (images.files[at].1.display(), decoded[at].0);
        bail!("{path}: has {other} pixels a side, the first image {side}");
    }
    let shape = [decoded.len(), bands, *side, *side];
    let mut pixels = match first {
        Pixels::U8(_) => Pixels::U8(Vec::new()),
        _ => Pixels::U16(Vec::new()),
    };
    for (_, image) in decoded {
        match (&mut pixels, image) {
            (Pixels::U8(all), Pixels::U8(image)) => all.extend(image),
            (Pixels::U16(all), Pixels::U16(image)) => all.extend(image),
            _ => bail!("images are of different types"),
        }
    }
    Ok(Tiles { shape, pixels })
}

/// What the images are.
pub fn describe(images: &Images, tiles: &Tiles) -> Description {
    let rgb = tiles.shape[1] == RGB.len();
    Description {
        name: if rgb { "EuroSAT RGB" } else { "EuroSAT" }.into(),
        bands: if rgb { &RGB[..] } else { &ALL_BANDS }.iter().map(|b| b.to_string()).collect(),
        classes: Some(images.classes.clone()),
        ignore_label: None,
        unit: if rgb { "grey level" } else { "reflectance x 10000" }.into(),
        corrections: Vec::new(),
    }
}

/// Side and planes of a square RGB image.
fn jpeg(bytes: Vec<u8>) -> Result<(usize, Pixels)> {
    let mut decoder = zune_jpeg::JpegDecoder::new(std::io::Cursor::new(bytes));
    let pixels = decoder.decode().map_err(|e| anyhow!("is not a whole JPEG image: {e}"))?;
    let (width, height) = decoder.dimensions().context("has no size")?;
    ensure!(width == height, "has {width} x {height} pixels, expected a square");
    ensure!(pixels.len() == width * height * 3, "is no RGB image");
    Ok((width, Pixels::U8(planes(&pixels, 3))))
}

/// Side and planes of a square image of thirteen u16 bands.
fn geotiff(bytes: Vec<u8>) -> Result<(usize, Pixels)> {
    let damaged = |e: tiff::TiffError| anyhow!("is not a whole TIFF image: {e}");
    let mut decoder = Decoder::new(std::io::Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    let bands = decoder.get_tag_u32(Tag::SamplesPerPixel).unwrap_or(1) as usize;
    ensure!(bands == ALL_BANDS.len(), "has {bands} bands, expected {}", ALL_BANDS.len());
    ensure!(width == height, "has {width} x {height} pixels, expected a square");
    let planar = decoder.get_tag_u32(Tag::PlanarConfiguration).is_ok_and(|v| v == 2);
    let mut image = DecodingResult::U16(Vec::new());
    decoder.read_image_to_buffer(&mut image).map_err(damaged)?;
    let DecodingResult::U16(pixels) = image else {
        bail!("has pixels of another type than u16");
    };
    let wanted = (width * height) as usize * bands;
    ensure!(pixels.len() == wanted, "holds {} values, expected {wanted}", pixels.len());
    Ok((width as usize, Pixels::U16(if planar { pixels } else { planes(&pixels, bands) })))
}

/// From bands innermost to bands outermost.
fn planes<T: Copy>(pixels: &[T], bands: usize) -> Vec<T> {
    (0..bands).flat_map(|band| pixels.iter().skip(band).step_by(bands).copied()).collect()
}
