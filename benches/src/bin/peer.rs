//! `nadir-peer`: this runtime as one of the peers of `benches/peers.sh`. See `nadir_benches::worker` for what it is asked.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use clap::Parser;
use nadir::Tile;
use nadir::encoder::Encoder;
use nadir::model::Model;
use nadir_benches::{engine, worker};
use nadir_formats::AlignedBytes;

/// Embeds tiles with a model and answers how long each took.
#[derive(Parser)]
#[command(name = "nadir-peer", version)]
struct Arguments {
    /// The model
    #[arg(value_name = "M.nadir", required_unless_present = "list_kernels")]
    model: Option<PathBuf>,
    /// Tiles [tiles, bands, height, width]
    #[arg(value_name = "X.npy", required_unless_present = "list_kernels")]
    tiles: Option<PathBuf>,
    /// The reference's embeddings [tiles, dimension]
    #[arg(value_name = "Y.npy", required_unless_present = "list_kernels")]
    reference: Option<PathBuf>,
    /// Threads that share the tiles of a call, at most one a tile
    #[arg(default_value_t = 1)]
    threads: usize,
    /// Kernels by name, if not those that the runtime chooses
    #[arg(long, value_name = "NAME")]
    kernels: Option<String>,
    /// Print the kernels that can be named here, and end
    #[arg(long)]
    list_kernels: bool,
}

struct Peer<'m> {
    engine: Encoder<'m>,
    /// One for each thread.
    arenas: Vec<AlignedBytes>,
    dimension: usize,
}

impl worker::Peer for Peer<'_> {
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn embed(&mut self, tile: Tile<'_>, out: &mut Vec<f32>) -> Result<()> {
        self.embed_batch(&[tile], out)
    }

    /// As `nadir_quantize::batch::embed_all` does it, with arenas that stay.
    fn embed_batch(&mut self, tiles: &[Tile<'_>], out: &mut Vec<f32>) -> Result<()> {
        let (engine, start) = (&self.engine, out.len());
        out.resize(start + tiles.len() * self.dimension, 0.0);
        let work = Mutex::new(tiles.iter().zip(out[start..].chunks_exact_mut(self.dimension)));
        let embed = |arena: &mut AlignedBytes| {
            loop {
                let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((&tile, embedding)) = next else { return Ok(()) };
                engine.embed(tile, arena, embedding)?;
            }
        };
        let (own, others) = self.arenas.split_first_mut().context("no arena")?;
        let more = tiles.len().saturating_sub(1).min(others.len());
        thread::scope(|scope| {
            let others: Vec<_> = others[..more].iter_mut().map(|arena| scope.spawn(|| embed(arena))).collect();
            let own: Result<()> = embed(own);
            others.into_iter().fold(own, |result, thread| match thread.join() {
                Ok(other) => result.and(other),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nadir-peer: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list_kernels {
        print!("{}", engine::list());
        return Ok(());
    }
    let Arguments { model: Some(path), tiles: Some(tiles), reference: Some(reference), .. } = arguments else {
        unreachable!("clap asks for them");
    };
    // Both live until the process ends, like every model in flight; the loading of the file is part of the time of loading.
    let mut bytes = None;
    let mut model = None;
    let (stdin, stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    worker::serve(
        tiles,
        reference,
        worker::batch()?,
        |_| {
            let bytes: &AlignedBytes = bytes.insert(AlignedBytes::read(path)?);
            let model: &Model<'_> = model.insert(Model::parse(bytes).with_context(|| path.display().to_string())?);
            let engine = engine::encoder(model, arguments.kernels.as_deref())?;
            let arenas = (0..arguments.threads.max(1)).map(|_| AlignedBytes::zeroed(engine.arena_bytes())).collect();
            Ok(Peer { engine, arenas, dimension: model.embedding_dimension() })
        },
        stdin,
        stdout,
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nadir_benches::worker::Peer as _;
    use nadir_formats::Tiles;

    use super::*;

    #[test]
    fn threads_change_no_embedding_and_no_order() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let bytes = AlignedBytes::read(&root.join("models/yocto-rgb-int8.nadir")).unwrap();
        let model = Model::parse(&bytes).unwrap();
        let tiles = Tiles::read(&root.join("samples/eurosat-rgb/tiles.npy")).unwrap();
        let tiles: Vec<Tile<'_>> = (0..9).map(|index| tiles.tile(index)).collect();
        let [one, two, many] = [1, 2, 12].map(|threads| {
            let engine = Encoder::new(&model);
            let arenas = (0..threads).map(|_| AlignedBytes::zeroed(engine.arena_bytes())).collect();
            let mut peer = Peer { engine, arenas, dimension: model.embedding_dimension() };
            let mut out = vec![7.0];
            peer.embed_batch(&tiles, &mut out).unwrap();
            out
        });
        assert_eq!(one.len(), 1 + 9 * model.embedding_dimension());
        assert!(one == two && one == many);
    }
}
