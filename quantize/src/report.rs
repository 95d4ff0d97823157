//! What quantization lost, layer by layer and in the end, and what each layer costs: one report as a table, as JSON and as HTML.
//!
//! The layers of an int8 model are those of [`crate::integers`], which the engine equals bit for bit, beside the float64
//! [`reference`](mod@crate::reference). Errors of the layers before are in those of the layers after. An int8 file holds no scales (the
//! runtime needs only their ratios), so that the scale of each map is the one with the least squared error.

mod ends;
mod html;
mod layers;
mod text;

use anyhow::Result;
use nadir::encoder::Encoder as Engine;
use nadir::model::Model;
use nadir_formats::{Encoder, Tiles};

pub use ends::{Accuracy, Ends, Labelled, OVERLAP, VOTES};
pub use html::page;
pub use layers::{Layer, costs};
pub use text::{json, text};

use crate::bound::PerMac;

/// Everything that a report shows.
pub struct Report<'m> {
    /// The quantized model.
    pub model: &'m Model<'m>,
    /// Its layers, in the order of the network.
    pub layers: Vec<Layer>,
    /// Tiles on which the layers were compared.
    pub layer_tiles: usize,
    /// How far its embeddings are from the float encoder's.
    pub ends: Ends,
    /// What a multiply-add costs, if it is known.
    pub per_mac: Option<PerMac>,
}

impl<'m> Report<'m> {
    /// Compares `model` with `encoder` on `tiles`, in the order of the model's bands: layers on `layer_tiles` of them, evenly spaced,
    /// embeddings on all. `done` is called once for each tile of either.
    ///
    /// # Errors
    /// If the tiles do not have the model's shape.
    pub fn of(
        model: &'m Model<'m>,
        encoder: &Encoder,
        tiles: &Tiles,
        layer_tiles: usize,
        labels: Option<&Labelled>,
        per_mac: Option<PerMac>,
        done: &(dyn Fn() + Sync),
    ) -> Result<Self> {
        let layer_tiles = layer_tiles.min(tiles.len());
        let picked: Vec<usize> = (0..layer_tiles).map(|i| i * tiles.len() / layer_tiles).collect();
        let layers = layers::compare(model, encoder, &tiles.pick(&picked), done);
        let ends = ends::compare(&Engine::new(model), encoder, tiles, labels, done)?;
        Ok(Self { model, layers, layer_tiles, ends, per_mac })
    }

    /// Instructions of so many multiply-adds, if their cost is known.
    pub fn instructions(&self, macs: u64) -> Option<u64> {
        self.per_mac.as_ref().map(|per_mac| (macs as f64 * per_mac.instructions).ceil() as u64)
    }

    /// The places of the network: a name and the layers of each.
    pub fn places(&self) -> impl Iterator<Item = (&str, &[Layer])> {
        self.layers.chunk_by(|a, b| a.place == b.place).map(|layers| (layers[0].place.as_str(), layers))
    }
}
