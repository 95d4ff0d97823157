//! Batches of a release as MP-MAE reads them: Sentinel-2 goes in, every chosen modality is predicted.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use nadir_formats::BandCard;
use sha2::{Digest, Sha256};

use super::loader::{Batch, Field, Loader, Options, Prefetch};
use super::modality::{Kind, Level, Modality};
use super::release::Release;
use super::values::Values;
use crate::mpmae::{Target, Task, TaskKind};

/// The modalities that a list names: names of modalities and of the sets `all` (MMEarth's twelve tasks), `s2`
/// (Sentinel-2 alone: a plain masked autoencoder), `pixel` (the six with a value a pixel) and `image` (the six with
/// values a tile), in MMEarth's order.
///
/// # Errors
/// If a name is neither.
pub fn modalities(list: &[String]) -> Result<Vec<Modality>> {
    let tasks = &Modality::ALL[..Modality::TASKS];
    let mut chosen = Vec::new();
    for name in list {
        match name.as_str() {
            "all" => chosen.extend(tasks),
            "s2" => chosen.push(Modality::Sentinel2),
            "pixel" => chosen.extend(tasks.iter().filter(|m| m.per_pixel())),
            "image" => chosen.extend(tasks.iter().filter(|m| !m.per_pixel())),
            name => match name.parse() {
                Ok(modality) => chosen.push(modality),
                Err(error) => bail!("{error}; and the sets all, s2, pixel and image"),
            },
        }
    }
    Ok(Modality::ALL.into_iter().filter(|m| chosen.contains(m)).collect())
}

/// Batches of a release, prepared ahead.
pub struct Feed {
    loader: Loader,
    release: Arc<Release>,
    /// Whether Sentinel-2 is predicted too.
    predicts_input: bool,
    normalise_patches: bool,
    /// Number of the batch that comes next, and where from.
    ahead: Option<(u64, Prefetch)>,
}

impl Feed {
    /// Batches in which the modalities of `options` are predicted. With `normalise_patches` Sentinel-2's target is brought to
    /// zero mean and unit variance patch by patch, all bands together.
    ///
    /// # Errors
    /// As [`Loader::new`], or if nothing is to be predicted.
    pub fn new(release: Arc<Release>, mut options: Options, normalise_patches: bool) -> Result<Self> {
        ensure!(!options.modalities.is_empty(), "{}: no modality to predict", release.folder().display());
        let predicts_input = options.modalities.contains(&Modality::Sentinel2);
        options.modalities.retain(|m| *m != Modality::Sentinel2);
        options.modalities.insert(0, Modality::Sentinel2);
        let loader = Loader::new(release.clone(), options)?;
        Ok(Self { loader, release, predicts_input, normalise_patches, ahead: None })
    }

    /// What makes the batches; Sentinel-2 comes first among its modalities.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    fn options(&self) -> &Options {
        self.loader.options()
    }

    /// The tasks in the order of the modalities.
    pub fn tasks(&self) -> Vec<Task> {
        let bands = self.loader.bands().len();
        let task = |modality: Modality| {
            let channels = if modality == Modality::Sentinel2 { bands } else { modality.channels() };
            let kind = match (modality.kind(), modality.per_pixel()) {
                (Kind::Numbers, true) => TaskKind::PixelRegression {
                    channels,
                    normalise_patches: self.normalise_patches && modality == Modality::Sentinel2,
                },
                (Kind::Numbers, false) => TaskKind::ImageRegression { width: channels },
                (Kind::PixelClasses { classes }, _) => TaskKind::PixelClassification { classes },
                (Kind::OneHot { classes }, _) => TaskKind::ImageClassification { classes },
            };
            Task { name: modality.name().to_owned(), kind }
        };
        self.predicted().map(task).collect()
    }

    fn predicted(&self) -> impl Iterator<Item = Modality> {
        self.options().modalities.iter().copied().skip(usize::from(!self.predicts_input))
    }

    /// The input bands with the statistics of `level`, which a finished model carries; in training each tile is
    /// normalised by those of its own level.
    ///
    /// # Errors
    /// If the release has no such statistics.
    pub fn band_cards(&self, level: Level) -> Result<Vec<BandCard>> {
        let statistics = self.release.statistics().of(Modality::Sentinel2, level)?;
        let names = Modality::Sentinel2.channel_names();
        let card = |&channel: &usize| BandCard {
            name: names[channel].to_owned(),
            unit: "reflectance x 10000".into(),
            mean: statistics.mean[channel] as f32,
            std: statistics.std[channel] as f32,
            no_data: Some(0.0),
            saturation: None,
        };
        Ok(self.loader.bands().iter().map(card).collect())
    }

    /// 16 hexadecimal digits that name the release and the rows in use.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.release.stem());
        for &row in &self.options().rows {
            hash.update((row as u64).to_le_bytes());
            hash.update(self.release.id(row));
            hash.update(self.release.level(row).name());
        }
        hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// A tile in use in words: its row and its name.
    pub fn tile(&self, index: usize) -> String {
        let row = self.options().rows[index];
        format!("{row} ({})", self.release.id(row))
    }

    /// Whether the first task is to predict the input.
    pub fn predicts_input(&self) -> bool {
        self.predicts_input
    }

    /// Batch `number`: the rows of its tiles, the encoder's input `[batch, bands, crop, crop]` with missing values at 0, the mean,
    /// and one target a task, on the host. Batches that are asked for in turn are ready sooner.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn batch(&mut self, number: u64, device: &Device) -> Result<(Vec<usize>, Tensor, Vec<Target>)> {
        let mut ahead = match self.ahead.take() {
            Some((next, ahead)) if next == number => ahead,
            _ => self.loader.prefetch(number)?,
        };
        let Batch { rows, fields, .. } = match ahead.next() {
            Some(batch) => batch?,
            None => bail!("{}: no more batches after an error", self.release.folder().display()),
        };
        self.ahead = Some((number + 1, ahead));
        let mut fields = fields.into_iter().peekable();
        let Some(Field { values: Values::Numbers(values), shape, .. }) = fields.peek() else {
            bail!("{}: Sentinel-2 does not come first", self.release.folder().display());
        };
        let known = values.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect();
        let x = Tensor::from_vec::<_, f32>(known, shape.as_slice(), device)?;
        let target = |field: Field| -> Result<Target> {
            let shape = field.shape.as_slice();
            Ok(match field.values {
                Values::Numbers(values) => Target::Values(Tensor::from_vec(values, shape, &Device::Cpu)?),
                Values::Classes(classes) => Target::Classes(Tensor::from_vec(classes, shape, &Device::Cpu)?),
            })
        };
        let targets = fields.skip(usize::from(!self.predicts_input)).map(target).collect::<Result<_>>()?;
        Ok((rows, x, targets))
    }
}
