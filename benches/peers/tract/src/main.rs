//! `nadir-peer-tract`: [tract](https://github.com/sonos/tract) runs the encoder from an ONNX file, as a peer of `benches/peers/own.py`.
//!
//! Arguments: `model.onnx x.npy y.npy threads`. tract runs on one thread, whatever is asked.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use nadir::Tile;
use nadir_benches::worker;
use tract_onnx::prelude::*;

struct Peer {
    state: TypedSimpleState,
    shape: [usize; 4],
}

impl Peer {
    /// Loads and optimises the model for one tile `[1, bands, height, width]`.
    fn load(path: &str, shape: [usize; 4]) -> Result<Self> {
        let state = tract_onnx::onnx()
            .model_for_path(path)
            .and_then(|model| model.with_input_fact(0, f32::fact(shape).into()))
            .and_then(|model| model.into_optimized())
            .and_then(|model| model.into_runnable())
            .and_then(|plan| plan.spawn())
            .map_err(|e| anyhow!("{path}: {e:#}"))?;
        Ok(Self { state, shape })
    }
}

impl worker::Peer for Peer {
    fn version(&self) -> String {
        env!("TRACT_VERSION").into()
    }

    fn embed(&mut self, tile: Tile<'_>, out: &mut Vec<f32>) -> Result<()> {
        // As every engine here: the sensor's values as f32 go in, the graph normalises them.
        let tile = match tile {
            Tile::F32(values) => Tensor::from_shape(&self.shape, values)?,
            _ => {
                let values: Vec<f32> = (0..tile.len()).filter_map(|i| tile.value(i)).collect();
                Tensor::from_shape(&self.shape, &values)?
            }
        };
        let embedding = self.state.run(tvec!(tile.into()))?;
        out.extend_from_slice(embedding[0].to_plain_array_view::<f32>()?.as_slice().context("a row of values")?);
        Ok(())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nadir-peer-tract: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!(arguments.len() == 4, "usage: nadir-peer-tract MODEL.onnx X.npy Y.npy THREADS");
    let [model, tiles, reference] = [0, 1, 2].map(|i| arguments[i].as_str());
    worker::serve(
        Path::new(tiles),
        Path::new(reference),
        worker::batch()?,
        |tiles| Peer::load(model, [1, tiles.shape[1], tiles.shape[2], tiles.shape[3]]),
        std::io::stdin().lock(),
        std::io::stdout().lock(),
    )
}
