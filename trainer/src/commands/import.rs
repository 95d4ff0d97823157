//! `trainer import`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nadir::model::StemPadding;

use super::info::thousands;
use crate::data::mmearth::Level;
use crate::data::names;
use crate::import::{self, Imported, Naming, Options};

/// Turn a checkpoint of MMEarth, or a ConvNeXt V2 encoder of PyTorch, into a model
///
/// Reads MMEarth's checkpoint-199.pth as it is: the pickle in it is read as data, nothing in it is run. Tensors are
/// checked by name, shape and number; what is missing or unexpected is listed whole. Also takes encoders with Meta's or
/// timm's names, in PyTorch's format or safetensors, with MMEarth's stem or ConvNeXt's own (patchify).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trainer import --checkpoint checkpoint-199.pth --out atto.safetensors
  trainer import --checkpoint checkpoint-199.pth --stem-padding none --level l1c --out atto.safetensors
  trainer import --checkpoint checkpoint-199.pth --out atto.safetensors --whole mpmae.safetensors
  trainer import --checkpoint convnextv2_atto_1k_224_ema.pt --out imagenet.safetensors

Mind the licence of the weights: see docs/checkpoints.md.")]
pub struct Import {
    /// The checkpoint: .pth or .pt of torch 1.6 or later, or .safetensors
    #[arg(long, value_name = "C.pth")]
    checkpoint: PathBuf,

    /// Where to write the encoder with its card
    #[arg(long, value_name = "MODEL.safetensors")]
    out: PathBuf,

    /// Where to write the whole pretraining model: encoder, the one decoder block, heads
    #[arg(long, value_name = "W.safetensors")]
    whole: Option<PathBuf>,

    /// Borders of MMEarth's stem: same as in pretraining, none as in its released classifier; not for patchify stems, which
    /// have none [default: same]
    #[arg(long, value_name = "HOW")]
    stem_padding: Option<Padding>,

    /// Level of the Sentinel-2 tiles that the encoder is to read; its statistics go into the card, unless the bands are
    /// ImageNet's
    #[arg(long, value_name = "LEVEL", default_value = "l2a")]
    level: Level,

    /// Names of the encoder's bands, in its order, with MMEarth's statistics [default: MMEarth's 12, or B2,B3,B4; with a
    /// patchify stem ImageNet's red, green and blue as B4,B3,B2 in grey levels]
    #[arg(long, value_name = "NAMES")]
    bands: Option<String>,

    /// Side of the tiles in pixels [default: 7 patches, as in pretraining: 56, 112 or 224]
    #[arg(long, value_name = "N")]
    tile_size: Option<u16>,

    /// Epsilon of Global Response Normalization [default: 1e-6 as in sparse pretraining, timm and patchify models; 1e-4 as in
    /// MMEarth's dense encoders for those, and with --stem-padding none]
    #[arg(long, value_name = "EPS", value_parser = super::positive)]
    grn_eps: Option<f64>,

    /// Name of the model, at most 32 bytes [default: size, patch and number of bands]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Padding {
    /// Initial convolution padded by 1: the grid of pretraining
    Same,
    /// Initial convolution not padded: what reproduces MMEarth's classification scores
    None,
}

impl Import {
    pub(super) fn run(self) -> Result<()> {
        let options = Options {
            stem_padding: self.stem_padding.map(|padding| match padding {
                Padding::Same => StemPadding::Same,
                Padding::None => StemPadding::None,
            }),
            level: self.level,
            bands: self.bands.as_deref().map(|list| names("bands", list)).transpose()?,
            tile_size: self.tile_size,
            grn_eps: self.grn_eps.map(|eps| eps as f32),
            name: self.name,
        };
        let imported = import::import(&self.checkpoint, &options)?;
        let shown = self.checkpoint.display();
        if let Some(path) = &self.whole {
            let whole = imported.whole.as_ref();
            let whole = whole.with_context(|| format!("--whole: {shown}: has an encoder, but no decoder"))?;
            whole.write(path)?;
        }
        imported.encoder.write(&self.out)?;
        println!("{shown}: {}", describe(&imported));
        let card = &imported.encoder.card;
        println!("{}: {}, embedding space {}", self.out.display(), card.name, card.embedding_space);
        if let (Some(path), Some(whole)) = (&self.whole, &imported.whole) {
            println!("{}: {} parameters", path.display(), thousands(whole.count() as u64));
        }
        if card.architecture.is_patchify() && self.bands.is_none() {
            eprintln!(
                "trainer: takes grey levels from 0 to 255, as ImageNet's pictures; for reflectances name the bands (--bands)"
            );
        }
        eprintln!("trainer: the licence of these weights is {}", card.provenance.licence);
        Ok(())
    }
}

/// What the file holds, in a line or two.
fn describe(i: &Imported) -> String {
    let (card, a) = (&i.encoder.card, &i.encoder.card.architecture);
    let names = match i.naming {
        Naming::Sparse => "MMEarth's sparse names",
        Naming::Meta => "Meta's names",
        Naming::Timm => "timm's names",
    };
    let size = i.size.map_or_else(|| format!("dims {:?}, depths {:?}", a.dims, a.depths), str::to_owned);
    let mut text = format!(
        "{size}, patch {}{}, {} bands, {names}; {} encoder tensors, {} parameters",
        a.patch_size,
        if a.is_patchify() { ", patchify stem" } else { "" },
        card.bands.len(),
        i.tensors,
        thousands(i.parameters)
    );
    if !i.final_norm {
        text += ", no final LayerNorm (weight 1 and bias 0 stand for it)";
    }
    if let Some(whole) = &i.whole {
        let tasks: Vec<_> = whole.tasks.iter().map(|t| t.name.as_str()).collect();
        text += &format!(
            "\nwhole model: {} parameters, {} decoder entries are one block; {}; predicts {}",
            thousands(whole.count() as u64),
            whole.decoders,
            if whole.config.uncertainty { "weighted by uncertainty" } else { "unweighted" },
            tasks.join(", ")
        );
    }
    text
}
