//! GEO-Bench 1.0: a folder a dataset, a small HDF5 file a sample, partitions as JSON.
//!
//! The layout is read from the code that writes these folders (`geobench/dataset.py` and `task.py` of ServiceNow's repository);
//! the published files were not at hand. Pickles are read as data, nothing in them is run.

mod cut;
mod sample;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nadir_formats::{Pixels, Tiles};
use rayon::prelude::*;

use self::sample::{Band, Label, Sample};
use super::NO_CLASS;
use super::folder::{Description, Stored};
use crate::import::pickle::Pickle;

/// A dataset ready to be written.
pub struct Dataset {
    /// What it is.
    pub about: Description,
    /// The tiles, in the order of the partition: train, validation, test.
    pub tiles: Tiles,
    /// Their labels.
    pub labels: Stored,
    /// Their split.
    pub split: Vec<i64>,
}

/// m-eurosat's bands are in EuroSAT's own order, in which B8A is last, but named as if it stood after B8 (geo-bench issue 28).
const EUROSAT: [(&str, &str); 5] = [("B8A", "B9"), ("B9", "B10"), ("B10", "B11"), ("B11", "B12"), ("B12", "B8A")];
/// m-brick-kiln's files hold ten bands and a true-colour image, named as Sentinel-2's thirteen (geo-bench issue 29).
const BRICK_KILN: [(&str, &str); 7] =
    [("B6", "B7"), ("B7", "B8A"), ("B8A", "B11"), ("B9", "B12"), ("B10", "TCI_R"), ("B11", "TCI_G"), ("B12", "TCI_B")];
/// m-so2sat stores reflectance, all others store it times this.
const REFLECTANCE: f32 = 10_000.0;

/// More classes than any dataset has.
const MAX_CLASSES: usize = 65536;

/// Reads the dataset in `folder` with the partition `partition`.
///
/// # Errors
/// If a file is missing or damaged, samples differ in their bands or labels, or a label is out of range; the file is named.
pub fn read(folder: &Path, partition: &str, as_released: bool) -> Result<Dataset> {
    let shown = folder.display();
    let (names, split) = samples(folder, partition)?;
    let load = |name: &String| -> Result<Sample> {
        let path = folder.join(format!("{name}.hdf5"));
        ensure!(path.is_file(), "{}: is in the partition but not there", path.display());
        sample::read(&path).with_context(|| path.display().to_string())
    };
    let samples = names.par_iter().map(load).collect::<Result<Vec<_>>>()?;
    let at = |i: usize| folder.join(format!("{}.hdf5", names[i])).display().to_string();
    let stored: Vec<String> = samples[0].bands.iter().map(|b| band_name(&b.name)).collect();
    if let Some(other) =
        samples.iter().position(|s| s.bands.iter().map(|b| band_name(&b.name)).ne(stored.iter().cloned()))
    {
        bail!("{}: has other bands than {}", at(other), at(0));
    }
    let side = samples[0].bands.iter().map(|b| b.height.max(b.width)).max().unwrap_or(0);
    let labels = stored_labels(&samples, side, &at)?;
    let mut planes: Vec<Vec<Vec<f32>>> = Vec::with_capacity(samples.len());
    let integers = samples.iter().all(|s| s.bands.iter().all(|b| b.integers));
    for (i, sample) in samples.into_iter().enumerate() {
        let each = sample.bands.into_iter().map(|band| enlarged(band, side));
        planes.push(each.collect::<Result<_>>().with_context(|| at(i))?);
    }

    let dataset = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let classes = classes(folder)?;
    check_classes(&labels, classes.as_ref().map(Vec::len), &at)?;
    let mut about = Description {
        name: if partition == "default" { dataset.clone() } else { format!("{dataset}, {partition}") },
        bands: stored,
        classes,
        ignore_label: matches!(labels, Stored::Map(_)).then_some(i64::from(NO_CLASS)),
        unit: "reflectance x 10000".into(),
        corrections: Vec::new(),
    };
    match dataset.as_str() {
        "m-eurosat" if !as_released => {
            rename(&mut about, &EUROSAT, "the published names misplace B8A, B9, B10, B11 and B12 (geo-bench issue 28)")
        }
        "m-brick-kiln" if !as_released => rename(
            &mut about,
            &BRICK_KILN,
            "the files hold B1-B5, B7, B8, B8A, B11, B12 and a true-colour image; B6 and B9 are not there (geo-bench issue 29)",
        ),
        "m-so2sat" if !as_released => {
            let optical: Vec<bool> = about.bands.iter().map(|band| band.starts_with('B')).collect();
            for (band, optical) in planes.iter_mut().flat_map(|tile| tile.iter_mut().zip(&optical)) {
                band.iter_mut().filter(|_| *optical).for_each(|v| *v *= REFLECTANCE);
            }
            about.corrections.push("m-so2sat: values of Sentinel-2 times 10000".into());
            for (missing, from) in [("B1", "B2"), ("B9", "B8A")] {
                let source =
                    about.bands.iter().position(|b| b == from).filter(|_| !about.bands.iter().any(|b| b == missing));
                if let Some(source) = source {
                    about.bands.push(missing.into());
                    planes.iter_mut().for_each(|tile| tile.push(tile[source].clone()));
                    about.corrections.push(format!("m-so2sat: {missing}, which is not there, is a copy of {from}"));
                }
            }
        }
        "m-SA-crop-type" => {
            about.unit = "8-bit".into();
            about.corrections.push("m-SA-crop-type: values are scaled to 8 bits; use --normalise data".into());
        }
        "m-NeonTree" => about.unit = "grey level".into(),
        _ => {}
    }
    let shape = [planes.len(), about.bands.len(), side, side];
    let pixels = pixels(planes, integers, &mut about);
    ensure!(!about.bands.is_empty() && side > 0, "{shown}: has no pixel");
    Ok(Dataset { about, tiles: Tiles { shape, pixels }, labels, split })
}

/// The samples of a partition and their split.
fn samples(folder: &Path, partition: &str) -> Result<(Vec<String>, Vec<i64>)> {
    let path = folder.join(format!("{partition}_partition.json"));
    let text = std::fs::read_to_string(&path).with_context(|| {
        let ending = "_partition.json";
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(ending)?.to_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        format!("{}: no such partition; the folder has {}", path.display(), names.join(", "))
    })?;
    let mut parts: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let (mut names, mut split) = (Vec::new(), Vec::new());
    for (code, part) in (0..).zip(["train", "valid", "test"]) {
        let of = parts.remove(part).with_context(|| format!("{}: has no {part}", path.display()))?;
        split.extend(std::iter::repeat_n(code, of.len()));
        names.extend(of);
    }
    ensure!(!names.is_empty(), "{}: names no sample", path.display());
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("{}: names sample {} twice", path.display(), twice[0]);
    }
    Ok((names, split))
}

/// The classes' names in `task_specs.pkl`, if it has any.
fn classes(folder: &Path) -> Result<Option<Vec<String>>> {
    let path = folder.join("task_specs.pkl");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let specs = Pickle::read(&bytes).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let label = specs.state(specs.root()).and_then(|state| specs.entry(state, "label_type"));
    let state = label.and_then(|label| specs.state(label));
    let list = state.and_then(|state| specs.entry(state, "_class_names").or_else(|| specs.entry(state, "class_name")));
    if let Some(list) = list
        && let Some(names) = specs.elements(list).iter().map(|id| specs.text(*id)).collect::<Option<Vec<_>>>()
        && !names.is_empty()
    {
        return Ok(Some(names.into_iter().map(str::to_owned).collect()));
    }
    let count = state.and_then(|state| specs.int(specs.entry(state, "n_classes")?));
    if let Some(n) = count {
        ensure!((1..=MAX_CLASSES).contains(&n), "{}: n_classes is {n}, expected 1 to {MAX_CLASSES}", path.display());
    }
    Ok(count.map(|n| (0..n).map(|class| class.to_string()).collect()))
}

/// A band's short name: `08A - Vegetation Red Edge` is B8A, `Red` is B4; of Sentinel-1 the part after the number.
fn band_name(long: &str) -> String {
    match (long.split_once(" - "), long) {
        (Some((_, radar)), _) if radar.starts_with("VH") || radar.starts_with("VV") => radar.to_owned(),
        (Some((number, _)), _) if number.starts_with(|c: char| c.is_ascii_digit()) => {
            nadir_formats::canonical_band(&format!("B{number}"))
        }
        (_, "Red") => "B4".into(),
        (_, "Green") => "B3".into(),
        (_, "Blue") => "B2".into(),
        _ => long.to_owned(),
    }
}

fn rename(about: &mut Description, table: &[(&str, &str)], why: &str) {
    for band in &mut about.bands {
        if let Some((_, right)) = table.iter().find(|(wrong, _)| wrong == band) {
            *band = (*right).to_owned();
        }
    }
    about.corrections.push(format!("{}: bands renamed, {why}", about.name));
}

/// A band at `side` by `side` pixels, each repeated where it is coarser by a whole factor.
fn enlarged(band: Band, side: usize) -> Result<Vec<f32>> {
    let Band { name, height, width, values, .. } = band;
    ensure!(
        height == width && height > 0 && side.is_multiple_of(height),
        "band {name} has {height} x {width} pixels, which do not make {side} x {side}"
    );
    let factor = side / height;
    Ok((0..side * side).map(|at| values[at / side / factor * width + at % side / factor]).collect())
}

/// All labels, which must be of one kind.
fn stored_labels(samples: &[Sample], side: usize, at: &dyn Fn(usize) -> String) -> Result<Stored> {
    let mismatch = |i: usize| anyhow!("{}: has another kind of label than {}", at(i), at(0));
    Ok(match &samples[0].label {
        Label::Class(_) => Stored::Classes(
            samples
                .iter()
                .enumerate()
                .map(|(i, s)| if let Label::Class(class) = s.label { Ok(class) } else { Err(mismatch(i)) })
                .collect::<Result<_>>()?,
        ),
        Label::Several(first) => {
            let mut all = Vec::with_capacity(samples.len() * first.len());
            for (i, sample) in samples.iter().enumerate() {
                let Label::Several(of) = &sample.label else { bail!(mismatch(i)) };
                ensure!(of.len() == first.len(), "{}: has {} classes, {} has {}", at(i), of.len(), at(0), first.len());
                ensure!(of.iter().all(|v| (0..=1).contains(v)), "{}: a label is neither 0 nor 1", at(i));
                all.extend(of.iter().map(|v| *v as u8));
            }
            Stored::Multi(all, first.len())
        }
        Label::Map(_) => {
            let mut all = Vec::with_capacity(samples.len() * side * side);
            for (i, sample) in samples.iter().enumerate() {
                let Label::Map(map) = &sample.label else { bail!(mismatch(i)) };
                let (height, width) = (map.height, map.width);
                ensure!(
                    (height, width) == (side, side),
                    "{}: the label has {height} x {width} pixels, not {side}",
                    at(i)
                );
                let out = map.values.iter().find(|v| !(0.0..=255.0).contains(*v) || v.fract() != 0.0);
                ensure!(out.is_none(), "{}: the label holds {}, expected classes 0 to 255", at(i), out.unwrap_or(&0.0));
                all.extend(map.values.iter().map(|v| *v as u8));
            }
            Stored::Map(all)
        }
    })
}

/// Fails if a class is not below the number of classes.
fn check_classes(labels: &Stored, classes: Option<usize>, at: &dyn Fn(usize) -> String) -> Result<()> {
    let Some(classes) = classes else { return Ok(()) };
    match labels {
        Stored::Classes(of) => {
            if let Some(i) = of.iter().position(|c| !(0..classes as i64).contains(c)) {
                bail!("{}: the label is {}, expected 0 to {}", at(i), of[i], classes - 1);
            }
        }
        Stored::Multi(_, columns) => {
            ensure!(*columns == classes, "{}: has {columns} classes, task_specs.pkl {classes}", at(0));
        }
        Stored::Map(of) => {
            if let Some(pixel) = of.iter().position(|c| usize::from(*c) >= classes && *c != NO_CLASS) {
                bail!("a label map holds class {}, expected 0 to {}", of[pixel], classes - 1);
            }
        }
    }
    Ok(())
}

/// All pixels as u16 if they are whole, otherwise as f32. Negative whole numbers, which reflectance cannot be, become 0.
fn pixels(planes: Vec<Vec<Vec<f32>>>, whole: bool, about: &mut Description) -> Pixels {
    let values = || planes.iter().flatten().flatten();
    if !whole || values().any(|v| *v > f32::from(u16::MAX)) {
        return Pixels::F32(values().copied().collect());
    }
    let negative = values().filter(|v| **v < 0.0).count();
    if negative > 0 {
        about.corrections.push(format!("{}: {negative} negative values became 0", about.name));
    }
    Pixels::U16(values().map(|v| v.max(0.0) as u16).collect())
}
