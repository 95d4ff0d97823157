//! `nadir-count`: embeds one tile once, for Valgrind to count the instructions. `cargo xtask counts` runs it.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use nadir::Tile;
use nadir::encoder::{EmbedError, Encoder};
use nadir::model::Model;
use nadir_benches::engine;
use nadir_formats::{AlignedBytes, Tiles};

/// Embeds one tile.
#[derive(Parser)]
#[command(name = "nadir-count", version)]
struct Arguments {
    /// The model
    #[arg(value_name = "M.nadir", required_unless_present = "list_kernels")]
    model: Option<PathBuf>,
    /// Kernels by name
    #[arg(long, value_name = "NAME", default_value = "scalar")]
    kernels: String,
    /// What the tile holds
    #[arg(long, default_value = "real")]
    tile: Kind,
    /// Where the real tile comes from, [tiles, bands, height, width] of u8: the first
    #[arg(long, value_name = "T.npy", required_unless_present = "list_kernels")]
    tiles: Option<PathBuf>,
    /// Print the kernels that can be named here, and end
    #[arg(long)]
    list_kernels: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// All pixels 0
    Zero,
    /// All pixels 255
    Max,
    /// The first of the tiles
    Real,
}

/// The one function whose instructions are counted; `cargo xtask counts` knows its name.
#[inline(never)]
fn counted_embed(
    engine: &Encoder<'_>,
    tile: Tile<'_>,
    arena: &mut [u8],
    embedding: &mut [f32],
) -> Result<(), EmbedError> {
    engine.embed(black_box(tile), arena, embedding)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nadir-count: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list_kernels {
        print!("{}", engine::list());
        return Ok(());
    }
    let Arguments { model: Some(path), tiles: Some(tiles), .. } = arguments else { unreachable!("clap asks for them") };
    let bytes = AlignedBytes::read(path)?;
    let model = Model::parse(&bytes).with_context(|| path.display().to_string())?;
    let engine = engine::encoder(&model, Some(&arguments.kernels))?;
    let tiles = Tiles::read(tiles)?;
    let Tile::U8(real) = tiles.tile(0) else { bail!("the tiles are not of u8") };
    // In one place for all kinds: how a copy begins and ends depends on the address.
    let mut tile = AlignedBytes::zeroed(model.tile_len());
    ensure!(real.len() == tile.len(), "a tile has {} values, the model takes {}", real.len(), tile.len());
    match arguments.tile {
        Kind::Zero => {}
        Kind::Max => tile.fill(u8::MAX),
        Kind::Real => tile.copy_from_slice(real),
    }
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    let mut embedding = vec![0.0; model.embedding_dimension()];
    counted_embed(&engine, Tile::U8(&tile), &mut arena, &mut embedding)?;
    // Multiply-accumulates, for the caller's table; and the result is used.
    println!("{} {}", model.architecture().macs(model.bands().len()), black_box(&embedding)[0]);
    Ok(())
}
