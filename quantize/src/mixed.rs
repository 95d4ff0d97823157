//! Mixed precision: which layers of an int8 model are raised to inputs of 14 bits, to meet a bound.
//!
//! What a layer brings is measured on whole embeddings: the model with that layer raised and no other, against the float encoder, on tiles that did
//! not calibrate. Layers are then raised one after the other, the one that brings most first, until the bound is met.
//! Raised layers cost multiply-adds (theirs twice), no bytes. f16 is another engine, with other promises (no equal bits), and runs a whole model or
//! nothing: it is what comes next where integers do not meet the bound, and is measured beside them.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use nadir::encoder::Encoder as Engine;
use nadir::model::{Model, Place, Precision};
use nadir_formats::{AlignedBytes, Encoder, Matrix, Tiles};

use crate::batch::{available_threads, embed_all};
use crate::compare::Agreement;
use crate::float;
use crate::inspect::thousands;
use crate::int8::Mixable;
use crate::report::{self, Layer};

/// What a raised layer has to bring to be worth its multiply-adds where no cosine is asked for, in decibels.
const WORTH_DB: f64 = 0.1;

/// How the inputs of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerPrecision {
    /// 8 bits.
    Int8,
    /// 14 bits, in two products.
    Int14,
}

impl LayerPrecision {
    /// `int8` or `int14`.
    pub const fn name(self) -> &'static str {
        match self {
            LayerPrecision::Int8 => "int8",
            LayerPrecision::Int14 => "int14",
        }
    }
}

/// How near a model's embeddings are to the float encoder's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closeness {
    /// Mean cosine.
    pub cosine: f64,
    /// Signal-to-noise ratio in decibels.
    pub decibels: f64,
}

/// Measures models on tiles that did not calibrate.
pub struct Judge<'a> {
    tiles: &'a Tiles,
    exact: Vec<Vec<f64>>,
    done: &'a (dyn Fn() + Sync),
}

impl<'a> Judge<'a> {
    /// The float encoder's embeddings, by the runtime in f32, which is within 1e-5 of float64; `done` is called after each tile that this or
    /// another model embeds.
    ///
    /// # Errors
    /// If the tiles do not have the encoder's shape, or there is none.
    pub fn new(encoder: &Encoder, tiles: &'a Tiles, done: &'a (dyn Fn() + Sync)) -> Result<Self> {
        ensure!(!tiles.is_empty(), "there is no tile");
        let mut judge = Self { tiles, exact: Vec::new(), done };
        judge.exact = judge.embed(&float::convert(encoder, Precision::F32)?)?;
        Ok(judge)
    }

    fn embed(&self, file: &[u8]) -> Result<Vec<Vec<f64>>> {
        let file = AlignedBytes::copy_of(file);
        let model = Model::parse(&file)?;
        let found: Matrix = embed_all(&Engine::new(&model), self.tiles, available_threads(), self.done)?;
        Ok((0..found.rows).map(|i| found.row(i).iter().map(|&v| f64::from(v)).collect()).collect())
    }

    /// How near the embeddings of a file are.
    ///
    /// # Errors
    /// If it is not a model of this encoder.
    pub fn closeness(&self, file: &[u8]) -> Result<Closeness> {
        let agreement = Agreement::of(&self.embed(file)?, &self.exact);
        Ok(Closeness { cosine: agreement.mean(), decibels: agreement.signal_to_noise_db })
    }
}

/// Runs over all tiles that [`measure`] and then at most [`choose`] take, the float encoder's included.
pub fn runs(mixable: &Mixable<'_>) -> usize {
    3 + 2 * mixable.raisable().len()
}

/// What was measured of a model and of each of its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivities {
    /// No layer raised.
    pub int8: Closeness,
    /// Each block's second pointwise layer raised by itself, in the order of a run.
    pub alone: Vec<(Place, Closeness)>,
    /// The f16 model of the same encoder.
    pub f16: Closeness,
}

/// Measures each layer by itself.
///
/// # Errors
/// If a model cannot be written or run.
pub fn measure(mixable: &Mixable<'_>, f16: &[u8], judge: &Judge<'_>) -> Result<Sensitivities> {
    let alone = |place: Place| Ok((place, judge.closeness(&mixable.file(&[place])?)?));
    Ok(Sensitivities {
        int8: judge.closeness(&mixable.file(&[])?)?,
        alone: mixable.raisable().into_iter().map(alone).collect::<Result<_>>()?,
        f16: judge.closeness(f16)?,
    })
}

/// What is asked of the embeddings: a mean cosine, or as much as raised layers bring.
///
/// Layers are raised in the order of what each brings by itself, until the cosine is reached; one that takes something off beside those raised
/// before stays as it was. Without a cosine each has to bring a tenth of a decibel. The result is how near it comes, and what is raised.
///
/// # Errors
/// If the cosine is not reached; the message says what is.
pub fn choose(
    mixable: &Mixable<'_>,
    sensitivities: &Sensitivities,
    judge: &Judge<'_>,
    min_cosine: Option<f64>,
) -> Result<(Closeness, Vec<Place>)> {
    let mut order = sensitivities.alone.clone();
    order.sort_by(|(_, a), (_, b)| b.decibels.total_cmp(&a.decibels));
    let (mut reached, mut raised) = (sensitivities.int8, Vec::new());
    let least = if min_cosine.is_some() { 0.0 } else { WORTH_DB };
    for (place, alone) in order {
        if min_cosine.is_some_and(|bound| reached.cosine >= bound) {
            break;
        }
        let with = [&raised[..], &[place]].concat();
        let found = if raised.is_empty() { alone } else { judge.closeness(&mixable.file(&with)?)? };
        if found.decibels > reached.decibels + least {
            (reached, raised) = (found, with);
        }
    }
    if let Some(bound) = min_cosine.filter(|&bound| reached.cosine < bound) {
        let Sensitivities { int8, f16, .. } = sensitivities;
        bail!(
            "a mean cosine of {bound} is not reached in integers: {:.6} in int8, {:.6} with {} of {} layers raised, {:.6} in f16 (--precision f16)",
            int8.cosine,
            reached.cosine,
            raised.len(),
            sensitivities.alone.len(),
            f16.cosine
        );
    }
    Ok((reached, raised))
}

/// A layer of the table: one with multiply-adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `block 3.0 pointwise 2`.
    pub layer: String,
    /// What it has.
    pub precision: LayerPrecision,
    /// Whether it can be raised.
    pub raisable: bool,
    /// With this layer raised and no other, and what that brings in decibels, where it was measured.
    pub alone: Option<(Closeness, f64)>,
    /// Bytes of its sections.
    pub bytes: u64,
    /// Multiply-adds of the kernels in its precision.
    pub macs: u64,
}

/// A model as its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// In the order of a run.
    pub rows: Vec<Row>,
}

/// Columns that a table must have to be read; the others are for people.
const NEEDED: [&str; 2] = ["layer", "precision"];

impl Table {
    /// The layers of `model`, a mixture of `mixable`.
    pub fn of(model: &Model<'_>, mixable: &Mixable<'_>, sensitivities: Option<&Sensitivities>) -> Self {
        let raised: Vec<String> = crate::inspect::raised(model);
        let named = |place: &Place| format!("{place} pointwise 2");
        let raisable: Vec<String> = mixable.raisable().iter().map(named).collect();
        let row = |Layer { place, name, bytes, macs, .. }: Layer| {
            // What follows a comma belongs to the layer: `pointwise 1, GELU`.
            let layer = format!("{place} {}", name.split(',').next().unwrap_or(name));
            let alone = sensitivities.and_then(|found| {
                let (_, alone) = found.alone.iter().find(|(place, _)| named(place) == layer)?;
                Some((*alone, alone.decibels - found.int8.decibels))
            });
            let precision = if raised.contains(&layer) { LayerPrecision::Int14 } else { LayerPrecision::Int8 };
            Row { precision, raisable: raisable.contains(&layer), layer, alone, bytes, macs }
        };
        Self { rows: report::costs(model).into_iter().filter(|layer| layer.macs > 0).map(row).collect() }
    }

    /// The table as a file to be edited and read again.
    pub fn csv(&self, footer: &str) -> String {
        let mut out = "layer,precision,choices,gain_db,cosine,bytes,macs\n".to_owned();
        for Row { layer, precision, raisable, alone, bytes, macs } in &self.rows {
            let choices = if *raisable { "int8 int14" } else { "int8" };
            let measured = alone.map_or(",".into(), |(found, gain)| format!("{gain:.2},{:.6}", found.cosine));
            let _ = writeln!(out, "{layer},{},{choices},{measured},{bytes},{macs}", precision.name());
        }
        for line in footer.lines() {
            let _ = writeln!(out, "# {line}");
        }
        out
    }

    /// The table for people.
    pub fn text(&self, footer: &str) -> String {
        let mut out = format!(
            "{:<28} {:<9} {:>8} {:>10} {:>12} {:>14}\n",
            "layer", "precision", "gain dB", "cosine", "bytes", "MACs"
        );
        for Row { layer, precision, raisable, alone, bytes, macs } in &self.rows {
            let [gain, cosine] = match alone {
                Some((found, gain)) => [format!("{gain:+.2}"), format!("{:.6}", found.cosine)],
                None => [(); 2].map(|()| if *raisable { "not run" } else { "-" }.to_owned()),
            };
            let [bytes, macs] = [bytes, macs].map(|&n| thousands(n));
            let _ = writeln!(out, "{layer:<28} {:<9} {gain:>8} {cosine:>10} {bytes:>12} {macs:>14}", precision.name());
        }
        let _ = write!(out, "{footer}");
        out
    }
}

/// A line of an edited table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    number: usize,
    layer: String,
    precision: LayerPrecision,
}

/// Reads an edited table. Columns may stand in any order; lines that are empty or begin with `#` are passed over.
///
/// # Errors
/// If a column is missing, or a line has too few or too many fields, another precision than `int8` and `int14`, or a layer that was named before;
/// the message names the line.
pub fn read_table(text: &str) -> Result<Vec<Line>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let filled = |(_, line): &(usize, &str)| !line.trim().is_empty() && !line.starts_with('#');
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(filled);
    let (first, head) = lines.next().context("is empty: the first line must name the columns")?;
    let head: Vec<&str> = head.split(',').map(str::trim).collect();
    let column = |name: &str| {
        let at = head.iter().position(|column| *column == name);
        at.with_context(|| format!("line {first}: there is no column {name}"))
    };
    let [layer_column, precision_column] = [column(NEEDED[0])?, column(NEEDED[1])?];
    let mut read: Vec<Line> = Vec::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        ensure!(fields.len() == head.len(), "line {number}: has {} fields, {} expected", fields.len(), head.len());
        let layer = fields[layer_column].to_owned();
        if let Some(before) = read.iter().find(|line| line.layer == layer) {
            bail!("line {number}: {layer} stands in line {} already", before.number);
        }
        let precision = match fields[precision_column] {
            "int8" => LayerPrecision::Int8,
            "int14" => LayerPrecision::Int14,
            "f16" => bail!(
                "line {number}: {layer} cannot be f16 beside integers, which promise the same bits everywhere: the whole model can, with --precision f16"
            ),
            other => bail!("line {number}: {layer} has precision {other:?}, expected int8 or int14"),
        };
        read.push(Line { number, layer, precision });
    }
    Ok(read)
}

/// The blocks that the lines of an edited table raise; `layers` are the model's.
///
/// # Errors
/// If a layer has no line, or a line names no layer, or one that cannot be raised as one to be; the message names the line.
pub fn raised_by(lines: &[Line], mixable: &Mixable<'_>, layers: &Table) -> Result<Vec<Place>> {
    let mut raised = Vec::new();
    for Line { number, layer, precision } in lines {
        ensure!(layers.rows.iter().any(|row| row.layer == *layer), "line {number}: the model has no layer {layer:?}");
        if *precision == LayerPrecision::Int14 {
            let place = mixable.raisable().into_iter().find(|place| *layer == format!("{place} pointwise 2"));
            raised.push(place.with_context(|| {
                format!("line {number}: {layer} can be int8 only: second pointwise layers can be raised")
            })?);
        }
    }
    match layers.rows.iter().find(|row| lines.iter().all(|line| line.layer != row.layer)) {
        Some(row) => bail!("there is no line for {}", row.layer),
        None => Ok(raised),
    }
}
