//! The subcommands that look at a model and what it costs: `plan`, `bound`, `profile`, `kernels`, `verify-kernels`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use nadir::encoder::Encoder;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{Model, Precision, STAGES};
use nadir::plan::int8::Passes;
use nadir_formats::{AlignedBytes, write_atomic};
use nadir_quantize::bound::{self, PerMac};
use nadir_quantize::conformance::{self, Case, FIRST, MODELS, TABLE, TILES, Table};
use nadir_quantize::options::{configured, kernel_names, passes_text, with_kernels};
use nadir_quantize::{picture, plan, profile};

use crate::{band_names, parse, print, read_tiles, writable};

#[derive(Subcommand)]
pub enum Command {
    /// Show what lies where in the arena, and what less memory would cost
    Plan {
        /// The model
        model: PathBuf,
        /// Bytes that the arena may have: stages are computed in two passes as far as needed
        #[arg(long, value_name = "BYTES")]
        budget: Option<usize>,
        /// One pass or two for each stage: 2,2,1,1
        #[arg(long, value_name = "P,P,P,P", conflicts_with = "budget")]
        passes: Option<String>,
        /// A picture of the arena over the run
        #[arg(long, value_name = "FILE")]
        png: Option<PathBuf>,
    },
    /// Show what each step costs: multiply-adds, bytes, and a bound of instructions from what one multiply-add was measured to take
    Bound {
        /// The model
        model: PathBuf,
        /// Instructions of a multiply-add, all others included
        #[arg(long, value_name = "X", conflicts_with = "target")]
        instructions_per_mac: Option<f64>,
        /// Take them from a file of counts: a board, or kernels of this machine
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// The file of counts
        #[arg(long, value_name = "FILE", default_value = "benches/counts.json")]
        counts: PathBuf,
        /// One pass or two for each stage: 2,2,1,1
        #[arg(long, value_name = "P,P,P,P")]
        passes: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure where the time goes, place by place, on one thread
    Profile {
        /// The model
        model: PathBuf,
        /// Tiles [tiles, bands, height, width]; not needed with --counters
        #[arg(required_unless_present = "counters")]
        tiles: Option<PathBuf>,
        /// Bands of the tiles in their order, if not the model's: B4,B3,B2
        #[arg(long, value_delimiter = ',')]
        bands: Option<Vec<String>>,
        /// Kernels by name, if not the fastest: see `quantize kernels`
        #[arg(long, value_name = "NAME")]
        kernels: Option<String>,
        /// One pass or two for each stage: 2,2,1,1
        #[arg(long, value_name = "P,P,P,P")]
        passes: Option<String>,
        /// A device's own counters: place,cycles as CSV or JSON
        #[arg(long, value_name = "FILE")]
        counters: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the kernels that this processor runs, slowest first
    Kernels,
    /// Compare this processor's int8 kernels with the committed hashes of five models on 64 tiles
    VerifyKernels {
        /// Only these, if not all that this processor runs
        #[arg(long, value_name = "NAME")]
        kernels: Option<String>,
        /// Only the first 4 tiles of each model
        #[arg(long, conflicts_with = "update")]
        quick: bool,
        /// Write the table anew, with the scalar kernels
        #[arg(long, conflicts_with = "kernels")]
        update: bool,
        /// The folder that holds models/, samples/ and tests/
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Plan { model, budget, passes, png } => {
            let bytes = AlignedBytes::read(&model)?;
            let parsed = parse(&bytes, &model)?;
            let named = || model.display().to_string();
            let encoder = configured(Encoder::new(&parsed), passes.as_deref(), budget).with_context(named)?;
            if let Some(png) = png {
                writable(&png)?;
                write_atomic(&png, &picture::arena(&encoder)?)?;
            }
            print(&plan::text(&encoder))
        }
        Command::Bound { model, instructions_per_mac, target, counts, passes, json } => {
            let bytes = AlignedBytes::read(&model)?;
            let model = parse(&bytes, &model)?;
            let encoder = configured(Encoder::new(&model), passes.as_deref(), None)?;
            let per_mac = per_mac(&model, instructions_per_mac, target.as_deref(), &counts)?;
            let per_mac = per_mac.as_ref();
            print(&if json {
                format!("{:#}\n", bound::json(&encoder, per_mac))
            } else {
                bound::text(&encoder, per_mac)
            })
        }
        Command::Profile { model, tiles, bands, kernels, passes, counters, json } => {
            let bytes = AlignedBytes::read(&model)?;
            let model = parse(&bytes, &model)?;
            let encoder = configured(with_kernels(&model, kernels.as_deref())?, passes.as_deref(), None)?;
            let mut rows = profile::places(&encoder);
            if let Some(counters) = counters {
                profile::read_counters(&counters, &mut rows)?;
            }
            let mut measured = 0;
            if let Some(tiles) = tiles {
                let side = usize::from(model.architecture().tile_size);
                let tiles = read_tiles(&tiles, bands.as_deref(), &band_names(&model), side)?;
                profile::measure(&encoder, &tiles, &mut rows)?;
                measured = tiles.len();
            }
            print(&if json {
                format!("{:#}\n", profile::json(&encoder, measured, &rows))
            } else {
                profile::text(&encoder, measured, &rows)
            })
        }
        Command::Kernels => {
            let line =
                |precision: Precision| format!("{:<5} {}\n", precision.name(), kernel_names(precision).join(", "));
            print(&[Precision::Int8, Precision::F16, Precision::F32].map(line).concat())
        }
        Command::VerifyKernels { kernels, quick, update, root } => {
            if update {
                update_table(&root)
            } else {
                verify(&root, kernels.as_deref(), if quick { FIRST } else { TILES })
            }
        }
    }
}

fn per_mac(model: &Model<'_>, given: Option<f64>, target: Option<&str>, counts: &Path) -> Result<Option<PerMac>> {
    match (given, target) {
        (Some(instructions), _) => {
            ensure!(
                instructions.is_finite() && instructions > 0.0,
                "--instructions-per-mac: {instructions} is not above 0"
            );
            Ok(Some(PerMac { instructions, source: "given".into() }))
        }
        (None, Some(target)) => bound::per_mac(counts, target, model).map(Some),
        (None, None) => Ok(None),
    }
}

fn update_table(root: &Path) -> Result<()> {
    let mut table = Table::default();
    for name in MODELS {
        let case = Case::load(root, name)?;
        let model = case.model()?;
        table.add(&case, &with_kernels(&model, Some("scalar"))?)?;
    }
    let path = root.join(TABLE);
    write_atomic(&path, table.text().as_bytes())?;
    print(&format!("{}: written\n", path.display()))
}

fn verify(root: &Path, kernels: Option<&str>, tiles: usize) -> Result<()> {
    let table = Table::read(&root.join(TABLE))?;
    let names: Vec<&str> = match kernels {
        Some(name) => vec![name],
        None => Int8Kernels::available().map(|set| set.name).collect(),
    };
    let mut failed = Vec::new();
    for model_name in MODELS {
        let case = Case::load(root, model_name)?;
        let model = case.model()?;
        for name in &names {
            for passes in [[Passes::One; STAGES], [Passes::Two; STAGES]] {
                let encoder = with_kernels(&model, Some(name))?.with_passes(passes);
                let found = conformance::hashes(&encoder, &case.tiles, tiles)?;
                let what = format!("{model_name}, {name}, passes {}", passes_text(passes));
                match table.check(&case, tiles, &found) {
                    Ok(()) => print(&format!("{what}: {} places as in the table, {tiles} tiles\n", found.len()))?,
                    Err(error) => failed.push(format!("{what}: {error:#}")),
                }
            }
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}
