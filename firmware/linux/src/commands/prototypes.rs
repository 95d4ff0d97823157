//! `triage prototypes`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nadir::triage::prototypes::Prototypes;
use nadir_formats::{AlignedBytes, read_integers, write_atomic};
use nadir_linux::assess::assess;
use nadir_linux::input::{parse_model, read_tiles};
use nadir_linux::learn::{Request, learn};

use super::{QualityOptions, print, progress};

#[derive(clap::Args)]
pub struct Arguments {
    /// The model
    #[arg(long, value_name = "M.nadir")]
    model: PathBuf,
    /// Labelled tiles, [tiles, bands, height, width]
    #[arg(long, value_name = "T.npy")]
    tiles: PathBuf,
    /// Class of each tile, an integer from 0 to 65535
    #[arg(long, value_name = "L.npy")]
    labels: PathBuf,
    /// Classes of interest, by their numbers in the labels
    #[arg(long, value_delimiter = ',', required = true, value_name = "3,5")]
    wanted: Vec<u16>,
    /// Prototype file to write
    #[arg(long, value_name = "P")]
    out: PathBuf,
    /// Part of each tile, an integer; see --use
    #[arg(long, value_name = "S.npy")]
    split: Option<PathBuf>,
    /// Parts to learn from
    #[arg(long = "use", value_delimiter = ',', default_value = "0", requires = "split", value_name = "0,1")]
    parts: Vec<i64>,
    /// The most prototypes of one class
    #[arg(long, default_value_t = 8, value_name = "N")]
    per_class: usize,
    /// The most embeddings to keep for novelty
    #[arg(long, default_value_t = 256, value_name = "N")]
    bank: usize,
    /// Fixes the clustering
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Names of the bands in the file, if their order differs from the model's
    #[arg(long, value_name = "B4,B3,..")]
    bands: Option<String>,
    #[command(flatten)]
    quality: QualityOptions,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!((1..=1000).contains(&arguments.per_class), "--per-class must be 1 to 1000");
    let limits = arguments.quality.limits()?;
    let model_bytes = AlignedBytes::read(&arguments.model)?;
    let model = parse_model(&arguments.model, &model_bytes)?;
    let tiles = read_tiles(&arguments.tiles, &model, arguments.bands.as_deref())?;
    let of_every_tile = |path: &PathBuf| -> Result<Vec<i64>> {
        let values = read_integers(path)?;
        let (found, expected) = (values.len(), tiles.len());
        ensure!(found == expected, "{}: {found} values for {expected} tiles", path.display());
        Ok(values)
    };
    let labels = of_every_tile(&arguments.labels)?;
    let rows: Vec<usize> = match &arguments.split {
        None => (0..tiles.len()).collect(),
        Some(path) => {
            let split = of_every_tile(path)?;
            (0..tiles.len()).filter(|row| arguments.parts.contains(&split[*row])).collect()
        }
    };
    ensure!(!rows.is_empty(), "no tile belongs to the parts {:?}", arguments.parts);

    let bar = progress(rows.len());
    let assessed = assess(&model, &tiles.pick(&rows), &limits, || bar.inc(1))?;
    bar.finish_and_clear();
    let (mut embeddings, mut classes) = (Vec::new(), Vec::new());
    for (tile, row) in assessed.into_iter().zip(&rows) {
        let label = u16::try_from(labels[*row])
            .with_context(|| format!("{}: label {} of tile {row}", arguments.labels.display(), labels[*row]))?;
        if let Some(embedding) = tile.embedding {
            embeddings.push(embedding);
            classes.push(label);
        }
    }
    let vetoed = rows.len() - embeddings.len();
    let request = Request {
        wanted: arguments.wanted.clone(),
        per_class: arguments.per_class,
        bank: arguments.bank,
        seed: arguments.seed,
    };
    let learned = learn(model.embedding_space(), &embeddings, &classes, &request)?;
    write_atomic(&arguments.out, &learned.bytes)?;

    let mut text = String::from(" class  tiles  prototypes\n");
    for class in &learned.classes {
        let mark = if arguments.wanted.contains(&class.label) { "  wanted" } else { "" };
        text += &format!("{:>6}  {:>5}  {:>10}{mark}\n", class.label, class.tiles, class.prototypes);
    }
    let table = Prototypes::parse(&learned.bytes)?;
    let header = table.header();
    text += &format!(
        "{} bytes; {} tiles vetoed; probability 1/2 at margin {:.3}, temperature {:.3}; novel from {:.3}\n",
        learned.bytes.len(),
        vetoed,
        header.midpoint,
        header.temperature,
        header.novel_from
    );
    text += &match learned.held_out_auc {
        Some(auc) => format!("wanted ranked before others on held-out halves: area under the ROC curve {auc:.3}\n"),
        None => "too few tiles to hold any out, or no other class\n".into(),
    };
    if !learned.fitted {
        text += "no probability curve could be fitted: midpoint and temperature are defaults\n";
    }
    print(&text)
}
