//! How large deltas become: models that differ from one in ways that occur, and what other codes would take for the same patches.
//!
//!     cargo run --release -p nadir-quantize --example delta_sizes -- models/yocto-rgb-int8.nadir
//!
//! The columns beside the delta count bits of gaps and differences alone, without rows, head and CRCs: bytes as varints (seven bits a byte), each
//! section with fields as wide as its largest values, Rice codes as in the delta, and the entropy of gaps and differences in each section.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nadir::model::{KIND_ANCILLARY, KIND_BLOCKS, Model, Place};
use nadir_formats::AlignedBytes;
use nadir_quantize::delta::{Kind, make};
use nadir_quantize::flight::{Equipment, equip};
use nadir_quantize::writer::{Section, write_file};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What is done to the weights.
#[derive(Clone, Copy)]
enum Change {
    /// This share of all weights goes up or down by 1 to 3.
    Random(f64),
    /// The pointwise layers of the last two stages drift by normal noise, rounded, of another size in each panel of 16 outputs; the number is its
    /// standard deviation at most.
    Drift(f64),
    /// The normalisation of the head goes up or down by up to 1 %.
    Head,
}

fn normal(random: &mut StdRng) -> f64 {
    let uniform = |random: &mut StdRng| 1.0 - random.random::<f64>();
    (-2.0 * uniform(random).ln()).sqrt() * (std::f64::consts::TAU * uniform(random)).cos()
}

fn edit(section: &mut Section, name: &str, place: Option<Place>, change: Change, random: &mut StdRng) {
    let is_weight = name.ends_with("weight");
    let late = matches!(place, Some(Place::Block { stage: 2.., .. }));
    match change {
        Change::Random(share) if is_weight => {
            for byte in &mut section.bytes {
                if random.random_bool(share) {
                    let by = random.random_range(1..=3i8);
                    *byte = (*byte as i8).saturating_add(if random.random() { by } else { -by }) as u8;
                }
            }
        }
        Change::Drift(size) if late && name.starts_with("pointwise") && is_weight => {
            let panels = section.bytes.chunks_mut(2048);
            for panel in panels {
                let size = size * random.random::<f64>();
                for byte in panel {
                    *byte = (*byte as i8).saturating_add((size * normal(random)).round() as i8) as u8;
                }
            }
        }
        Change::Head if matches!(place, Some(Place::Head)) && name == "norm gain" => {
            for value in section.bytes.as_chunks_mut::<4>().0 {
                let scaled = f64::from(i32::from_le_bytes(*value)) * random.random_range(0.99..1.01);
                *value = (scaled.round() as i32).to_le_bytes();
            }
        }
        _ => {}
    }
}

fn changed(model: &Model<'_>, change: Change) -> Result<Vec<u8>> {
    let random = &mut StdRng::seed_from_u64(20_261_123);
    let mut header = model.header().clone();
    header.model_version += 1;
    let mut sections = Section::all_of(model);
    sections.retain(|section| section.kind < KIND_ANCILLARY);
    for (index, section) in sections.iter_mut().enumerate() {
        let place = model.expected(index).map(|spec| spec.place);
        edit(section, model.section_name(index).name(), place, change, random);
    }
    let tensors = AlignedBytes::copy_of(&write_file(&header, &sections, model.has_parity())?);
    let equipment = Equipment { model_version: None, parity: model.has_parity(), key: None };
    equip(&Model::parse(&tensors)?, &equipment)
}

/// Bits that an optimal code of single values would take.
fn entropy(values: &[u64]) -> f64 {
    let mut counts = BTreeMap::new();
    values.iter().for_each(|value| *counts.entry(value).or_insert(0.0) += 1.0);
    let all = values.len() as f64;
    counts.values().map(|&count: &f64| -count * (count / all).log2()).sum()
}

/// Bits of gaps and differences: varints, fixed fields, best Rice codes, entropy.
fn codes(old: &Model<'_>, new: &Model<'_>) -> [f64; 4] {
    let mut sum = [0.0; 4];
    for index in 0..new.section_count() {
        let Some(entry) = new.section_entry(index).filter(|entry| entry.kind != KIND_BLOCKS) else { continue };
        let (size, width) = (entry.dtype.bytes(), 8 * entry.dtype.bytes() as u32);
        let element = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        let pairs = old.section_bytes(index).chunks_exact(size).zip(new.section_bytes(index).chunks_exact(size));
        let (mut gaps, mut values, mut next) = (Vec::new(), Vec::new(), 0);
        for (at, (old, new)) in pairs.enumerate().filter(|(_, (old, new))| old != new) {
            let difference = (element(new).wrapping_sub(element(old)) << (64 - width)) as i64 >> (64 - width);
            gaps.push((at - next) as u64);
            values.push((difference << 1 ^ difference >> 63) as u64 - 1);
            next = at + 1;
        }
        for list in [&gaps, &values].into_iter().filter(|list| !list.is_empty()) {
            let bits = |value: u64| 64 - value.leading_zeros();
            let rice = |k: u32| list.iter().map(|value| (value >> k) as f64 + 1.0 + f64::from(k)).sum::<f64>();
            sum[0] += list.iter().map(|&value| f64::from(8 * bits(value).max(1).div_ceil(7))).sum::<f64>();
            sum[1] += list.len() as f64 * f64::from(list.iter().map(|&value| bits(value)).max().unwrap_or(0));
            sum[2] += (0..width.max(32)).map(rice).fold(f64::INFINITY, f64::min);
            sum[3] += entropy(list);
        }
    }
    sum
}

fn main() -> Result<()> {
    let path =
        std::env::args_os().nth(1).map(PathBuf::from).context("give a .nadir file, and others to compare it with")?;
    let bytes = AlignedBytes::read(&path)?;
    let old = Model::parse(&bytes)?;
    let mut pairs = Vec::new();
    let changes = [
        ("1 % of the weights, by 1 to 3", Change::Random(0.01)),
        ("pointwise layers of stages 2 and 3 drift", Change::Drift(0.28)),
        ("head", Change::Head),
        ("all weights, by 1 to 3", Change::Random(1.0)),
    ];
    for (name, change) in changes {
        pairs.push((name.to_owned(), AlignedBytes::copy_of(&changed(&old, change)?)));
    }
    for other in std::env::args_os().skip(2).map(PathBuf::from) {
        pairs.push((other.display().to_string(), AlignedBytes::read(&other)?));
    }
    println!(
        "| change | elements that differ | delta | of the file | parts patched, whole | varints | fields | Rice | entropy |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, file) in &pairs {
        let new = Model::parse(file)?;
        let made = make(&old, &new, None)?;
        let changed: usize = made.parts.iter().filter(|p| p.kind != Kind::Computed).map(|p| p.changed).sum();
        let of = |kind| made.parts.iter().filter(|p| p.kind == kind).count();
        let same = (0..new.section_count()).all(|i| old.section_bytes(i).len() == new.section_bytes(i).len());
        let bits = if same {
            codes(&old, &new).map(|bits| format!("{:.0}", bits / 8.0)).join(" | ")
        } else {
            "- | - | - | -".into()
        };
        println!(
            "| {name} | {changed} | {} | {:.2} % | {}, {} | {bits} |",
            made.file.len(),
            100.0 * made.file.len() as f64 / file.len() as f64,
            of(Kind::Patch),
            of(Kind::Whole)
        );
    }
    Ok(())
}
