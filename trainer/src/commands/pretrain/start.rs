//! `--init`: the model that a pretraining starts from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nadir::model::Architecture;
use nadir_formats::{BandCard, Encoder as EncoderFile, Tensor as Array};

use crate::encoder::whole_patches;
use crate::import::{THREE, TWELVE, Whole};
use crate::mpmae::MpMae;

/// A model to start from.
pub struct Start {
    path: PathBuf,
    name: String,
    architecture: Architecture,
    /// Named as [`MpMae::params`].
    parameters: BTreeMap<String, Array>,
    /// What its log variances belong to, in order.
    tasks: Vec<String>,
}

impl Start {
    /// Reads an encoder, whose bands must be `bands`, or a whole pretraining model, which must take as many.
    pub fn read(path: &Path, bands: &[BandCard]) -> Result<Self> {
        let shown = path.display();
        if let Some(whole) = Whole::read(path)? {
            let taken = whole.bands;
            ensure!(taken == bands.len(), "--init {shown}: takes {taken} bands, the data has {}", bands.len());
            // Whole models are MMEarth's, whose bands are known by their number.
            let theirs = [&TWELVE[..], &THREE[..]].into_iter().find(|names| names.len() == taken);
            let ours: Vec<&str> = bands.iter().map(|b| b.name.as_str()).collect();
            ensure!(
                theirs.is_none_or(|names| names == ours),
                "--init {shown}: takes MMEarth's bands {}, the data has {}",
                theirs.unwrap_or_default().join(","),
                ours.join(",")
            );
            return Ok(Self {
                path: path.to_owned(),
                name: format!("the whole model {}", path.file_name().unwrap_or_default().to_string_lossy()),
                architecture: whole.architecture,
                parameters: whole.parameters,
                tasks: whole.tasks,
            });
        }
        let EncoderFile { card, tensors } = EncoderFile::read(path)?;
        let (theirs, ours) = (card.band_names(), bands.iter().map(|b| b.name.as_str()).collect::<Vec<_>>());
        ensure!(theirs == ours, "--init {shown}: takes bands {}, the data has {}", theirs.join(","), ours.join(","));
        let parameters = tensors
            .into_iter()
            .filter(|(name, _)| !name.starts_with("norm."))
            .map(|(name, tensor)| (format!("encoder.{name}"), tensor))
            .collect();
        let (name, architecture) = (card.name, card.architecture);
        Ok(Self { path: path.to_owned(), name, architecture, parameters, tasks: Vec::new() })
    }

    /// The model in words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape for tiles of `side` pixels, in the geometry of pretraining.
    pub fn architecture(&self, side: usize) -> Result<Architecture> {
        let patch = usize::from(self.architecture.patch_size);
        let tile_size = u16::try_from(side).with_context(|| format!("tiles of {side} pixels are too large"))?;
        ensure!(side.is_multiple_of(patch), "tiles of {side} pixels are not whole patches of {patch}; see --crop");
        let stem_padding = whole_patches(self.architecture.stem_padding);
        let architecture = Architecture { tile_size, stem_padding, ..self.architecture };
        architecture.validate()?;
        Ok(architecture)
    }

    /// Channels of its decoder, if it has one.
    pub fn decoder_dim(&self) -> Option<usize> {
        self.parameters.get("proj.bias").map(|bias| bias.data.len())
    }

    /// Puts its parameters into the model and gives the names of those parts that it lacks.
    ///
    /// Fails if one has another shape.
    pub fn load(&self, model: &MpMae) -> Result<Vec<String>> {
        let mut lacking = Vec::new();
        for (name, var) in model.params().vars() {
            if name == "log_vars" {
                let zero = [0.0];
                let theirs = self.parameters.get(name).map_or(&[][..], |a| a.data.as_slice());
                let of = |task: &str| self.tasks.iter().position(|t| t == task).and_then(|at| theirs.get(at));
                let values: Vec<f32> = model.tasks().iter().map(|t| *of(&t.name).unwrap_or(&zero[0])).collect();
                model.params().set(name, &values)?;
                continue;
            }
            match self.parameters.get(name) {
                Some(array) if array.shape == var.dims() => model.params().set(name, &array.data)?,
                Some(array) => bail!(
                    "--init {}: {name} has shape {:?}, expected {:?}",
                    self.path.display(),
                    array.shape,
                    var.dims()
                ),
                None => lacking.push(name),
            }
        }
        // Part by part is enough to know: `pred.lat`, `decoder`.
        let part = |name: &str| match name.strip_prefix("pred.") {
            Some(rest) => format!("pred.{}", rest.split('.').next().unwrap_or(rest)),
            None => name.split('.').next().unwrap_or(name).to_owned(),
        };
        let mut parts: Vec<String> = lacking.into_iter().map(part).collect();
        parts.dedup();
        Ok(parts)
    }
}
