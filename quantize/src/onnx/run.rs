//! The graph in tract, with the maps of every place.

use anyhow::{Result, anyhow};
use nadir::Tile;
use nadir::model::{Place, STAGES};
use tract_onnx::prelude::*;

use super::OnnxEncoder;
use super::form::Axis;
use crate::maps::{PlaceMap, stage_of};
use crate::reference::normalised;

/// A graph that is ready to run.
pub struct Graph<'a> {
    onnx: &'a OnnxEncoder,
    shape: [usize; 4],
    plan: Arc<TypedSimplePlan>,
}

impl<'a> Graph<'a> {
    /// Prepares the graph, with an output for each place.
    ///
    /// # Errors
    /// If tract cannot run it.
    pub fn new(onnx: &'a OnnxEncoder) -> Result<Self> {
        let (source, side) = (&onnx.source, usize::from(onnx.encoder.card.architecture.tile_size));
        let shape = [source.shape[0].unwrap_or(1), onnx.encoder.card.bands.len(), side, side];
        let names: Vec<_> = onnx.places.iter().map(|(_, layer)| layer.value.clone()).collect();
        let outlets = source.outlets(&names)?;
        let plan = (|| {
            let mut model = source.model(shape)?;
            model.select_output_outlets(&outlets)?;
            model.into_optimized()?.into_runnable()
        })()
        .map_err(|e| anyhow!("tract cannot run the graph: {e:#}"))?;
        Ok(Self { onnx, shape, plan })
    }

    /// The maps of one tile `[bands, height, width]`. Where the file fixes the size of a batch, the tile is repeated.
    ///
    /// # Errors
    /// If tract cannot run the graph.
    pub fn maps(&self, tile: Tile<'_>) -> Result<Vec<PlaceMap>> {
        let card = &self.onnx.encoder.card;
        let values: Vec<f32> = if self.onnx.normalises {
            (0..tile.len()).map(|i| tile.value(i).unwrap_or(f32::NAN)).collect()
        } else {
            normalised(tile, &card.bands, card.architecture.tile_size)
        };
        let batch = values.repeat(self.shape[0]);
        let input = Tensor::from_shape(&self.shape, &batch)?;
        let outputs = self.plan.run(tvec!(input.into())).map_err(|e| anyhow!("tract cannot run the graph: {e:#}"))?;
        let mut maps = Vec::new();
        for ((place, layer), output) in self.onnx.places.iter().zip(outputs) {
            let channels = card.architecture.dim(if *place == Place::Head { STAGES - 1 } else { stage_of(*place) });
            let values = output.cast_to::<f32>()?;
            let view = values.to_plain_array_view::<f32>()?;
            let first = view.len() / self.shape[0];
            let at = |axis: Axis| layer.axes.iter().position(|a| *a == axis);
            // Channels last, the tiles of the batch first.
            let wanted = [Axis::Batch, Axis::Row, Axis::Column, Axis::One, Axis::Channel];
            let mut order: Vec<usize> = wanted.iter().filter_map(|axis| at(*axis)).collect();
            let rest: Vec<usize> = (0..layer.axes.len()).filter(|i| !order.contains(i)).collect();
            order.splice(1..1, rest);
            let values = view.permuted_axes(order).iter().take(first).map(|v| f64::from(*v)).collect();
            maps.push(PlaceMap { place: *place, channels, values });
        }
        Ok(maps)
    }
}
