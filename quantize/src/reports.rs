//! The subcommands that compare: `report` and `diff`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use nadir_formats::{AlignedBytes, Encoder, write_atomic};
use nadir_quantize::report::{self, Labelled, Report};
use nadir_quantize::{bound, diff};

use crate::{band_names, parse, print, progress, read_tiles, same_encoder, writable};

#[derive(Subcommand)]
pub enum Command {
    /// Report what quantization lost, layer by layer and in the end, and what each layer costs
    ///
    /// Layers of an int8 model are compared with float64 on some of the tiles: signal to noise, cosine, share of values cut off, range.
    /// Embeddings are compared on all: cosine, overlap of the 10 nearest tiles and, with labels, what a 20-NN and a logistic regression
    /// read from either. Give tiles that did not calibrate.
    #[command(after_help = "Example:\n  quantize report yocto.nadir --float yocto.safetensors --tiles test.npy \
        --labels labels.npy --split split.npy --html report.html")]
    Report {
        /// The model
        model: PathBuf,
        /// The encoder from which it was made
        #[arg(long, value_name = "X.safetensors")]
        float: PathBuf,
        /// Tiles [tiles, bands, height, width], best not those of the calibration
        #[arg(long, value_name = "T.npy")]
        tiles: PathBuf,
        /// Bands of the tiles in their order, if not the model's: B4,B3,B2
        #[arg(long, value_delimiter = ',')]
        bands: Option<Vec<String>>,
        /// Tiles on which the layers are compared, evenly spaced
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
        layer_tiles: u32,
        /// Class of each tile, an integer for each
        #[arg(long, value_name = "L.npy", requires = "split")]
        labels: Option<PathBuf>,
        /// 0 (train), 1 (validation), 2 (test) or -1 (not used) for each tile
        #[arg(long, value_name = "S.npy", requires = "labels")]
        split: Option<PathBuf>,
        /// Count instructions too, for a board or kernels of the file of counts
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// The file of counts
        #[arg(long, value_name = "FILE", default_value = "benches/counts.json")]
        counts: PathBuf,
        /// Write the report as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Write the report as one HTML page with plots
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Say where two .nadir files differ, and whether their embeddings may be compared
    Diff {
        /// One model
        #[arg(value_name = "A.nadir")]
        first: PathBuf,
        /// The other
        #[arg(value_name = "B.nadir")]
        second: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Report {
            model: path,
            float,
            tiles,
            bands,
            layer_tiles,
            labels,
            split,
            target,
            counts,
            json,
            html,
        } => {
            let bytes = AlignedBytes::read(&path)?;
            let model = parse(&bytes, &path)?;
            let encoder = Encoder::read(&float)?;
            same_encoder(&model, &path, &encoder, &float)?;
            let side = usize::from(model.architecture().tile_size);
            let tiles = read_tiles(&tiles, bands.as_deref(), &band_names(&model), side)?;
            let labels = match labels.zip(split) {
                Some((labels, split)) => Some(Labelled::read(&labels, &split, tiles.len())?),
                None => None,
            };
            let per_mac = target.map(|target| bound::per_mac(&counts, &target, &model)).transpose()?;
            [&json, &html].into_iter().flatten().try_for_each(|out| writable(out))?;
            let layer_tiles = (layer_tiles as usize).min(tiles.len());
            let bar = progress(layer_tiles + tiles.len(), "report", "tiles");
            let report = Report::of(&model, &encoder, &tiles, layer_tiles, labels.as_ref(), per_mac, &|| bar.inc(1))?;
            bar.finish_and_clear();
            if let Some(json) = json {
                write_atomic(&json, format!("{:#}\n", report::json(&report)).as_bytes())?;
            }
            if let Some(html) = html {
                write_atomic(&html, report::page(&report).as_bytes())?;
            }
            print(&report::text(&report))
        }
        Command::Diff { first, second, json } => {
            let [a, b] = [AlignedBytes::read(&first)?, AlignedBytes::read(&second)?];
            let [a, b] = [parse(&a, &first)?, parse(&b, &second)?];
            let found = diff::Diff::of(&a, &b);
            print(&if json { format!("{:#}\n", diff::json(&found)) } else { diff::text(&found) })
        }
    }
}
