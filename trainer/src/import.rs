//! Encoders from elsewhere: MMEarth's released checkpoints, and ConvNeXt V2 encoders under Meta's or timm's names.
//!
//! ```text
//! checkpoint-199.pth ─► pth (zip) ─► pickle (data only) ─► source: tensors by name
//!                                                             │  names: who named them, which size
//!                                                             ▼
//!                         bands: card ─► encoder.safetensors ◄─ source::collect: every tensor accounted for
//!                                        whole model         ◄─ whole: one decoder block, heads
//! ```
//!
//! The layout of MMEarth's files is known from the code that writes them; how it maps to a dense encoder is said at
//! [`Naming`] and in `docs/checkpoints.md`.

mod bands;
mod names;
pub(crate) mod pickle;
mod pth;
mod source;
pub(crate) mod whole;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nadir::model::{Architecture, StemPadding};
use nadir_formats::{Encoder as EncoderFile, ModelCard, Provenance, Tensor as Array};

pub use bands::{IMAGENET, THREE, TWELVE};
pub use names::Naming;
use names::Size;
use source::Source;
pub use whole::Whole;

use crate::data::mmearth::Level;

/// What is known of the licence of MMEarth's checkpoints, in one line.
pub const LICENCE: &str = "not clear: the LICENSE of MMEarth-train holds the MIT licence and, from ConvNeXt V2, that of \
     CC BY-NC 4.0, and says of neither that it is the weights'; until their authors do, take them as CC BY-NC 4.0, \
     not for commercial use";

/// What is known of the licence of a file with a patchify stem, in one line.
pub const LICENCE_OF_META: &str = "not said by the file; Meta's weights of ConvNeXt V2, which timm hands on, are CC BY-NC 4.0, not for \
     commercial use";

/// What a checkpoint does not say of the encoder that it becomes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Geometry of MMEarth's stem: that of pretraining (`Same`, also if not given) or of MMEarth's released classifier (`None`). For
    /// a patchify stem it is not to be given.
    pub stem_padding: Option<StemPadding>,
    /// Whose statistics normalise the bands, if they are MMEarth's.
    pub level: Level,
    /// The bands in the encoder's order, with MMEarth's statistics. If not given, MMEarth's 12 or 3; with a patchify stem the 3 of
    /// ImageNet.
    pub bands: Option<Vec<String>>,
    /// Side of the tiles in pixels; 7 patches, as in MMEarth's pretraining and in ImageNet's models, if not given.
    pub tile_size: Option<u16>,
    /// Epsilon of Global Response Normalization. If not given, 1e-6 as in MMEarth's sparse pretraining, in timm and with a patchify
    /// stem, and 1e-4 as in MMEarth's dense encoders for those and for `StemPadding::None`.
    pub grn_eps: Option<f32>,
    /// Name of the model, at most 32 bytes; made of what it is if not given.
    pub name: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { stem_padding: None, level: Level::L2a, bands: None, tile_size: None, grn_eps: None, name: None }
    }
}

/// A checkpoint that has been read.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The encoder with its card.
    pub encoder: EncoderFile,
    /// The rest of the pretraining model, if the file has it.
    pub whole: Option<Whole>,
    /// Who named the tensors.
    pub naming: Naming,
    /// Name of its size (`atto`), if it is one of ConvNeXt V2's.
    pub size: Option<&'static str>,
    /// Number of tensors of the encoder in the file.
    pub tensors: usize,
    /// Number of parameters in them; the final LayerNorm is not among them, unless the file has it.
    pub parameters: u64,
    /// Whether the file has the final LayerNorm. MMEarth's pretraining has none; then its weight is 1 and its bias 0.
    pub final_norm: bool,
}

/// Reads the checkpoint at `path`.
///
/// # Errors
/// One line that names the file, and all tensors that are missing, unexpected, of another shape or not finite. If the
/// encoder is one that Nadir's architecture cannot express, the line says why.
pub fn import(path: &Path, options: &Options) -> Result<Imported> {
    let source = Source::read(path)?;
    let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    from_source(&source, &file, options).with_context(|| path.display().to_string())
}

fn from_source(source: &Source, file: &str, options: &Options) -> Result<Imported> {
    let naming = Naming::of(source)?;
    let (mut architecture, count) = names::shape(naming, source)?;
    let patch = architecture.patch_size;
    let patchify = architecture.is_patchify();
    if let Some(padding) = options.stem_padding {
        ensure!(
            patchify == (padding == StemPadding::Patchify),
            "--stem-padding {}, but the stem of this file is {}",
            name_of(padding),
            if patchify { "one convolution whose kernel is its stride, without padding" } else { "MMEarth's" }
        );
        architecture.stem_padding = padding;
    }
    let dense = naming == Naming::Meta || architecture.stem_padding == StemPadding::None;
    architecture.tile_size = options.tile_size.unwrap_or(7 * u16::from(patch));
    architecture.grn_eps = options.grn_eps.unwrap_or(if dense && !patchify { 1e-4 } else { 1e-6 });
    let of_imagenet = patchify && options.bands.is_none();
    let bands = match of_imagenet {
        true if count == IMAGENET.len() => bands::imagenet(),
        true => bail!(
            "the encoder takes {count} bands, ImageNet's models take 3 (red, green, blue); name them with --bands"
        ),
        false => bands::cards(count, options.bands.as_deref(), options.level)?,
    };
    architecture.validate_bands(count)?;
    architecture.validate()?;
    ensure!(
        architecture.tile_size.is_multiple_of(u16::from(patch)),
        "tiles of {} pixels are not whole patches of {patch}",
        architecture.tile_size
    );

    let rest = (naming == Naming::Sparse).then(|| whole::Rest::of(source, &architecture, count)).flatten();
    let norm = names::final_norm(naming, &architecture);
    let final_norm = naming != Naming::Sparse && norm.iter().any(|w| source.get(&w.from).is_some());
    let mut wanted = names::wanted(naming, &architecture, count);
    let (tensors, parameters) =
        (wanted.len(), wanted.iter().map(|w| w.to.iter().product::<usize>() as u64).sum::<u64>());
    wanted.extend(final_norm.then_some(norm).into_iter().flatten());
    wanted.extend(rest.iter().flat_map(|r| r.wanted.iter().cloned()));
    let ignored = |name: &str| match naming {
        Naming::Sparse => rest.is_none() && whole::belongs(name),
        Naming::Meta | Naming::Timm => name.starts_with("head.") && !name.starts_with("head.norm."),
    };
    let mut all = source::collect(source, &wanted, ignored)?;
    let size = Size::with_dims(&architecture.dims);
    if let Some(size) = size {
        let expected = size.parameters(&architecture, count);
        ensure!(
            tensors == size.tensors(patchify) && expected.is_none_or(|n| n == parameters),
            "has {tensors} encoder tensors with {parameters} parameters, {} has {} with {expected:?}",
            size.name,
            size.tensors(patchify)
        );
    }

    let mut of_encoder = |name: &str| all.remove(&format!("encoder.{name}"));
    let names: Vec<_> = nadir_formats::expected_shapes(&architecture, count).into_iter().collect();
    let mut weights = std::collections::BTreeMap::new();
    for (name, shape) in names {
        let fresh =
            || Array { data: vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; shape[0]], shape: shape.clone() };
        let tensor = of_encoder(&name).or_else(|| name.starts_with("norm.").then(fresh));
        weights.insert(name.clone(), tensor.with_context(|| format!("tensor {name} is missing"))?);
    }
    let whole = rest.map(|rest| {
        let of_model = weights.iter().filter(|(name, _)| !name.starts_with("norm."));
        all.extend(of_model.map(|(name, tensor)| (format!("encoder.{name}"), tensor.clone())));
        rest.tie(all, architecture, count)
    });

    let card = ModelCard {
        name: options.name.clone().unwrap_or_else(|| default_name(naming, size, patch, count)),
        architecture,
        bands,
        embedding_space: "unnamed".into(),
        provenance: provenance(naming, file, &architecture, (!of_imagenet).then_some(options.level), final_norm),
    };
    let mut encoder = EncoderFile { card, tensors: weights };
    // The same weights in another geometry give other embeddings.
    let suffix = if architecture.stem_padding == StemPadding::None { "-none" } else { "" };
    encoder.card.embedding_space = encoder.space_of_weights() + suffix;
    encoder.card.validate().map_err(|e| anyhow!(e))?;
    let parameters = parameters + if final_norm { 2 * architecture.embedding_dimension() as u64 } else { 0 };
    let tensors = tensors + if final_norm { 2 } else { 0 };
    let whole = whole.transpose()?;
    Ok(Imported { encoder, whole, naming, size: size.map(|s| s.name), tensors, parameters, final_norm })
}

fn default_name(naming: Naming, size: Option<&Size>, patch: u8, bands: usize) -> String {
    let whose = if naming == Naming::Sparse { "mmearth" } else { "imported" };
    format!("{whose}-{}-p{patch}-{bands}", size.map_or("custom", |s| s.name))
}

/// As the command line has it.
fn name_of(padding: StemPadding) -> &'static str {
    match padding {
        StemPadding::Same => "same",
        StemPadding::None => "none",
        StemPadding::Patchify => "patchify",
    }
}

/// `level` is that of MMEarth's statistics; without it they are ImageNet's.
fn provenance(
    naming: Naming,
    file: &str,
    architecture: &Architecture,
    level: Option<Level>,
    final_norm: bool,
) -> Provenance {
    // Texts of a model file are limited; a long file name is cut.
    let file: String = file.chars().take(80).collect();
    let unsaid = "not said by the file".to_owned();
    let (data, licence) = match naming {
        Naming::Sparse => ("MMEarth (Nedungadi et al., 2024)".to_owned(), LICENCE.to_owned()),
        _ if architecture.is_patchify() => (unsaid, LICENCE_OF_META.to_owned()),
        _ => (unsaid, format!("not said by the file; if it is MMEarth's: {LICENCE}")),
    };
    let norm = if final_norm { "" } else { ", final LayerNorm fresh (weight 1, bias 0)" };
    let stem = match architecture.is_patchify() {
        true => "patchify stem".to_owned(),
        false => format!("stem padding {}", name_of(architecture.stem_padding)),
    };
    let statistics = match level {
        Some(Level::L1c) => "level L1C",
        Some(Level::L2a) => "level L2A",
        None => "ImageNet",
    };
    let recipe = format!("import of {file}, {stem}, statistics of {statistics}{norm}");
    Provenance { made_by: crate::run::made_by(), data, recipe, licence }
}

#[cfg(test)]
mod tests;
