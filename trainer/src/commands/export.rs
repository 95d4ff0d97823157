//! `trainer export`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nadir_formats::Encoder as EncoderFile;

use crate::export::{BOUND, write_onnx, write_pytorch};

/// Write a model for other engines: ONNX, or safetensors for PyTorch
///
/// The ONNX graph (opset 20) takes sensor values, f32 [batch, bands, height, width], and holds the normalisation. Before
/// it is written tract runs it on random tiles, and its embeddings must be those of the model here.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trainer export --model zepto.safetensors --onnx zepto.onnx
  trainer export --model zepto.safetensors --safetensors zepto-pytorch.safetensors")]
pub struct Export {
    /// The encoder
    #[arg(long, value_name = "MODEL.safetensors")]
    model: PathBuf,

    /// Where to write the ONNX graph
    #[arg(long, value_name = "Y.onnx", required_unless_present = "safetensors")]
    onnx: Option<PathBuf>,

    /// Tiles in a run of the ONNX graph [default: any number]
    #[arg(long, value_name = "N", requires = "onnx", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Option<u16>,

    /// Where to write the tensors by the names of MMEarth's dense encoder (Meta's ConvNeXt V2 with MMEarth's stem), or Meta's
    /// own where the stem is patchify; the card goes beside them as NAME.card.json. This encoder takes normalised tiles
    #[arg(long, value_name = "Y.safetensors")]
    safetensors: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(self) -> Result<()> {
        let file = EncoderFile::read(&self.model)?;
        if let Some(path) = &self.onnx {
            let found = write_onnx(&file, self.batch.map(usize::from), path)?;
            println!(
                "{}: as tract runs it, {} random tiles have our embeddings with a relative error of at most {:.1e} (bound {BOUND:e})",
                path.display(),
                found.tiles,
                found.error
            );
        }
        if let Some(path) = &self.safetensors {
            let card = write_pytorch(&file, path)?;
            println!("{}: {} tensors, card in {}", path.display(), file.tensors.len(), card.display());
        }
        Ok(())
    }
}
