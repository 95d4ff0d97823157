//! What the student is: its size, bands and tiles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nadir::model::{Architecture, STAGES, StemPadding};
use nadir_formats::{BandCard, Encoder as EncoderFile, ModelCard, Tensor as Array, canonical_band};
use serde::Deserialize;

use crate::data::names;
use crate::distill::Fit;

/// The options about the student.
#[derive(Debug, Args)]
pub struct StudentArgs {
    /// Size of the student: yocto (0.3 M parameters), zepto (1.1 M), atto (3.4 M), or a file with dims = [A, B, C, D], depths =
    /// [A, B, C, D] and, if they are not the teacher's, bands = ["B4", ...], tile_size, patch_size and stem_padding = "same", "none" or
    /// "patchify" (one convolution of whole patches, as ConvNeXt's own)
    #[arg(long, visible_alias = "size", default_value = "yocto", value_name = "SIZE|FILE.toml")]
    student: String,

    /// A student to continue from, in place of a new one
    #[arg(long, value_name = "STUDENT.safetensors", conflicts_with_all = ["student", "student_bands", "tile_size", "patch"])]
    pub init: Option<PathBuf>,

    /// The bands that the student takes, some of the teacher's, in its own order [default: the teacher's]
    #[arg(long, value_name = "NAMES")]
    student_bands: Option<String>,

    /// Pixels a side of the student's tiles [default: the teacher's]
    #[arg(long, value_name = "PIXELS")]
    pub tile_size: Option<u16>,

    /// How tiles come to --tile-size
    #[arg(long, value_enum, default_value_t = Fit::Resize)]
    fit: Fit,

    /// Side of a patch of the student in pixels (8, 16 or 32) [default: the teacher's]
    #[arg(long, value_name = "PIXELS")]
    patch: Option<u8>,
}

/// A student before its training.
pub struct Plan {
    pub architecture: Architecture,
    pub bands: Vec<BandCard>,
    pub fit: Fit,
    /// What the model is called unless it is named.
    pub name: String,
    /// The weights to continue from.
    pub tensors: Option<BTreeMap<String, Array>>,
}

/// A student's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Custom {
    dims: [u16; STAGES],
    depths: [u8; STAGES],
    bands: Option<Vec<String>>,
    tile_size: Option<u16>,
    patch_size: Option<u8>,
    stem_padding: Option<StemPadding>,
}

impl StudentArgs {
    /// The student for this teacher.
    pub fn plan(&self, teacher: &ModelCard) -> Result<Plan> {
        if let Some(path) = &self.init {
            return self.continued(path, teacher);
        }
        let custom = match self.student.ends_with(".toml") {
            true => Some(custom(Path::new(&self.student))?),
            false => None,
        };
        let of_file = |f: fn(&Custom) -> Option<u16>| custom.as_ref().and_then(f);
        let tile_size = self.tile_size.or(of_file(|c| c.tile_size)).unwrap_or(teacher.architecture.tile_size);
        let patch =
            self.patch.or(custom.as_ref().and_then(|c| c.patch_size)).unwrap_or(teacher.architecture.patch_size);
        let wanted = match (&self.student_bands, custom.as_ref().and_then(|c| c.bands.clone())) {
            (Some(list), _) => Some(names("student-bands", list)?),
            (None, of_file) => of_file,
        };
        let named = if custom.is_some() { "yocto" } else { &self.student };
        let Some(mut architecture) = Architecture::named(named, tile_size, patch) else {
            bail!("--student {named}: is neither a known size nor a .toml file");
        };
        architecture.stem_padding = teacher.architecture.stem_padding;
        if let Some(custom) = &custom {
            (architecture.dims, architecture.depths) = (custom.dims, custom.depths);
            architecture.stem_padding = custom.stem_padding.unwrap_or(architecture.stem_padding);
        }
        ensure!(
            patch > 0 && tile_size.is_multiple_of(u16::from(patch)),
            "tiles of {tile_size} pixels are not whole patches of {patch}; see --patch and --tile-size"
        );
        architecture.validate().with_context(|| format!("--student {}", self.student))?;
        let bands = match wanted {
            Some(wanted) => chosen(&wanted, teacher)?,
            None => teacher.bands.clone(),
        };
        let size = if custom.is_some() { "custom" } else { &self.student };
        let name = format!("{size}-{}", bands.len());
        Ok(Plan { architecture, bands, fit: self.fit, name, tensors: None })
    }

    /// A student that was trained before; its bands must be the teacher's, some or all.
    fn continued(&self, path: &Path, teacher: &ModelCard) -> Result<Plan> {
        let EncoderFile { card, tensors } = EncoderFile::read(path)?;
        let (shown, own, whole) = (path.display(), card.architecture.tile_size, teacher.architecture.tile_size);
        ensure!(own <= whole, "{shown}: takes tiles of {own} pixels, the teacher of {whole}");
        for band in &card.bands {
            ensure!(
                teacher.bands.contains(band),
                "{shown}: takes the bands {} with other names or normalisation than the teacher ({})",
                card.band_names().join(","),
                teacher.band_names().join(",")
            );
        }
        let (architecture, bands, name) = (card.architecture, card.bands, card.name);
        Ok(Plan { architecture, bands, fit: self.fit, name, tensors: Some(tensors) })
    }
}

/// Reads a student's file.
fn custom(path: &Path) -> Result<Custom> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(shown)?;
    // Only the message: the rendering spans lines.
    toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", shown(), e.message().replace('\n', " ")))
}

/// The teacher's cards of the bands wanted.
fn chosen(wanted: &[String], teacher: &ModelCard) -> Result<Vec<BandCard>> {
    let card = |name: &String| {
        let name = canonical_band(name);
        let card = teacher.bands.iter().find(|band| band.name == name);
        card.cloned().with_context(|| {
            format!("the student wants band {name}, the teacher has {}", teacher.band_names().join(","))
        })
    };
    wanted.iter().map(card).collect()
}
