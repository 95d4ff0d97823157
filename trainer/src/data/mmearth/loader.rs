//! Batches of aligned random crops, prepared ahead on all cores.
//!
//! What a step holds depends on the seed and the step alone: thread `t` of `n` prepares steps `t`, `t + n`, `t + 2n` and sends each
//! through a channel of its own, and the reader takes the channels in turn. A channel holds [`Options::ahead`] batches, so memory is
//! bounded by `threads * (ahead + 1)` batches.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use rand::RngExt;

use super::modality::{Kind, Modality};
use super::release::Release;
use super::values::{Rules, Values, Window};
use crate::data::{AS_IS, Sampler, Stream, generator};

/// What a loader yields.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The modalities, each once.
    pub modalities: Vec<Modality>,
    /// The rows to draw from, for instance a split's `train`; every epoch draws each once.
    pub rows: Vec<usize>,
    /// Tiles in a batch.
    pub batch: usize,
    /// Batches that make a step; an epoch holds a whole number of steps.
    pub accumulate: usize,
    /// Pixels a side of the crops, at most the tiles'.
    pub crop: usize,
    /// Turn and mirror the crops at random, all modalities of a tile alike.
    pub flips: bool,
    /// Names of the Sentinel-2 bands, in the order wanted; `None` takes all but B10, which Level-2A lacks.
    pub bands: Option<Vec<String>>,
    /// How missing values are treated.
    pub rules: Rules,
    /// Seed of order, crops and symmetries.
    pub seed: u64,
    /// Threads that prepare batches; 0 takes one a core.
    pub threads: usize,
    /// Batches that each thread may be ahead.
    pub ahead: usize,
    /// Which equal part of each batch to make, and of how many; [`Options::batch`] counts all of them.
    pub part: [usize; 2],
}

impl Options {
    /// All rows and the twelve tasks, in batches of 64 crops of seven eighths of the tile (112 of 128, 56 of 64, as MP-MAE trains).
    pub fn of(release: &Release) -> Self {
        Self {
            modalities: Modality::ALL[..Modality::TASKS].to_vec(),
            rows: (0..release.rows()).collect(),
            batch: 64,
            accumulate: 1,
            crop: release.side() * 7 / 8,
            flips: false,
            bands: None,
            rules: Rules::Masked,
            seed: 1,
            threads: 0,
            ahead: 1,
            part: [0, 1],
        }
    }
}

/// One modality of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The modality.
    pub modality: Modality,
    /// Numbers `[batch, channels, crop, crop]` or `[batch, channels]`, classes `[batch, crop, crop]` or `[batch]`.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Values,
    /// For each tile whether any of its values is known.
    pub present: Vec<bool>,
}

/// The tiles of one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number, from 0 over all epochs.
    pub step: u64,
    /// The tiles' rows in the release.
    pub rows: Vec<usize>,
    /// The modalities in the order of the options.
    pub fields: Vec<Field>,
}

/// Makes batches of a release.
#[derive(Clone)]
pub struct Loader {
    release: Arc<Release>,
    options: Options,
    channels: Vec<Vec<usize>>,
    sampler: Sampler,
}

impl Loader {
    /// Checks the options against the release.
    ///
    /// # Errors
    /// If there is no such row, modality or band, one is named twice, or the crop does not fit.
    pub fn new(release: Arc<Release>, options: Options) -> Result<Self> {
        let (side, folder) = (release.side(), release.folder().display());
        ensure!(!options.rows.is_empty() && options.batch > 0, "{folder}: no tiles to load");
        ensure!((1..=side).contains(&options.crop), "{folder}: crops of {} pixels, tiles of {side}", options.crop);
        options.rows.iter().try_for_each(|row| release.check_row(*row))?;
        let held = release.modalities();
        for (at, modality) in options.modalities.iter().enumerate() {
            ensure!(held.contains(modality), "{folder}: holds no {modality}");
            ensure!(!options.modalities[..at].contains(modality), "{modality} is named twice");
        }
        let channels = options.modalities.iter().map(|m| channels(*m, options.bands.as_deref()));
        let channels = channels.collect::<Result<_>>()?;
        let (rows, accumulate) = (options.rows.len(), options.accumulate);
        let sampler = Sampler::new(rows, options.batch, options.seed, options.flips).in_steps_of(accumulate)?;
        Ok(Self { release, options, channels, sampler })
    }

    /// Batches in an epoch; the tiles that do not fill a step sit out, others each epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.sampler.batches_per_epoch()
    }

    /// What the loader yields.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Indices of the stored Sentinel-2 bands that are wanted, in their order.
    pub fn bands(&self) -> &[usize] {
        let at = self.options.modalities.iter().position(|m| *m == Modality::Sentinel2);
        at.map_or(&[], |at| &self.channels[at])
    }

    /// The wanted Sentinel-2 bands in the middles of tiles in use, `[tiles, bands, crop, crop]`; missing values are NaN.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn middles(&self, indices: &[usize]) -> Result<Vec<f32>> {
        let corner = (self.release.side() - self.options.crop) / 2;
        let window = Window { top: corner, left: corner, side: self.options.crop, symmetry: AS_IS };
        let (rules, mut raw) = (self.options.rules, Vec::new());
        let mut values = Values::empty(Modality::Sentinel2);
        for &index in indices {
            let row = self.options.rows[index];
            self.release.append_values(row, Modality::Sentinel2, self.bands(), window, rules, &mut raw, &mut values)?;
        }
        match values {
            Values::Numbers(values) => Ok(values),
            Values::Classes(_) => Ok(Vec::new()),
        }
    }

    /// Batch `step`, made by this thread.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn batch(&mut self, step: u64) -> Result<Batch> {
        let draws = self.sampler.draw(step);
        let crop = self.options.crop;
        let mut random = generator(self.options.seed, Stream::Crops, step);
        let room = self.release.side() - crop;
        let tiles: Vec<(usize, Window)> = draws
            .into_iter()
            .map(|(index, symmetry)| {
                let [top, left] = [(); 2].map(|()| random.random_range(0..=room as u32) as usize);
                (self.options.rows[index], Window { top, left, side: crop, symmetry })
            })
            .collect();
        let [part, parts] = self.options.part;
        let each = tiles.len() / parts;
        let tiles = &tiles[part * each..(part + 1) * each];
        let mut raw = Vec::new();
        let mut fields = Vec::new();
        for (&modality, channels) in self.options.modalities.iter().zip(&self.channels) {
            let pixels: &[usize] = if modality.per_pixel() { &[crop, crop] } else { &[] };
            let inner = match modality.kind() {
                Kind::Numbers => [&[channels.len()], pixels].concat(),
                _ => pixels.to_vec(),
            };
            let mut values = match Values::empty(modality) {
                Values::Numbers(_) => {
                    Values::Numbers(Vec::with_capacity(tiles.len() * inner.iter().product::<usize>()))
                }
                Values::Classes(_) => {
                    Values::Classes(Vec::with_capacity(tiles.len() * inner.iter().product::<usize>()))
                }
            };
            let mut present = Vec::with_capacity(tiles.len());
            for &(row, window) in tiles {
                let start = values.len();
                let rules = self.options.rules;
                self.release.append_values(row, modality, channels, window, rules, &mut raw, &mut values)?;
                present.push(values.any_known(start));
            }
            fields.push(Field { modality, shape: [&[tiles.len()][..], &inner].concat(), values, present });
        }
        Ok(Batch { step, rows: tiles.iter().map(|(row, _)| *row).collect(), fields })
    }

    /// Batches from step `first` on, without end, prepared ahead by threads that stop when the iterator is dropped.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn prefetch(&self, first: u64) -> Result<Prefetch> {
        let threads = match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let mut lanes = Vec::new();
        let mut handles = Vec::new();
        for thread in 0..threads as u64 {
            let (sender, receiver) = sync_channel(self.options.ahead);
            let mut loader = self.clone();
            let work = move || {
                for step in (first + thread..).step_by(threads) {
                    let batch = loader.batch(step);
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        break;
                    }
                }
            };
            let handle = std::thread::Builder::new().name(format!("loader {thread}")).spawn(work);
            handles.push(handle.context("cannot start a loader's thread")?);
            lanes.push(receiver);
        }
        Ok(Prefetch { lanes, handles, next: 0 })
    }
}

/// Indices of the stored channels that are wanted.
fn channels(modality: Modality, bands: Option<&[String]>) -> Result<Vec<usize>> {
    let names = modality.channel_names();
    match (modality, bands) {
        (Modality::Sentinel2, None) => Ok((0..names.len()).filter(|&i| names[i] != "B10").collect()),
        (Modality::Sentinel2, Some(wanted)) => {
            let index = |band: &String| {
                let name = nadir_formats::canonical_band(band);
                let at = names.iter().position(|n| *n == name);
                at.with_context(|| format!("sentinel2 has no band {band}; it has {}", names.join(",")))
            };
            wanted.iter().map(index).collect()
        }
        _ => Ok((0..modality.channels()).collect()),
    }
}

/// Batches in order, prepared ahead. After an error there are no more.
pub struct Prefetch {
    lanes: Vec<Receiver<Result<Batch>>>,
    handles: Vec<JoinHandle<()>>,
    next: usize,
}

impl Iterator for Prefetch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let lane = self.lanes.get(self.next)?;
        self.next = (self.next + 1) % self.lanes.len();
        let batch = lane.recv().unwrap_or_else(|_| Err(anyhow!("a loader's thread has ended")));
        if batch.is_err() {
            self.lanes.clear();
        }
        Some(batch)
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // Without receivers the threads' next send fails.
        self.lanes.clear();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}
