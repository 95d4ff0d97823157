//! `nadir-peer`: this runtime as one of the peers of `benches/peers.sh`. See `nadir_benches::worker` for what it is asked.

use std::path::PathBuf;
use std::process::ExitCode;

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
    /// Threads that may be used; one encoder uses no more than it can
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
    arena: AlignedBytes,
    embedding: Vec<f32>,
}

impl worker::Peer for Peer<'_> {
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn embed(&mut self, tile: Tile<'_>, out: &mut Vec<f32>) -> Result<()> {
        self.engine.embed(tile, &mut self.arena, &mut self.embedding)?;
        out.extend_from_slice(&self.embedding);
        Ok(())
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
    // The place for threads: an encoder that can use several gets `threads` here.
    let _threads = arguments.threads.clamp(1, engine::MAX_THREADS);
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
            let arena = AlignedBytes::zeroed(engine.arena_bytes());
            Ok(Peer { engine, arena, embedding: vec![0.0; model.embedding_dimension()] })
        },
        stdin,
        stdout,
    )
}
