//! ONNX encoders of this family: ConvNeXt V2 blocks behind MMEarth's stem or a patchify stem, written by any exporter.
//!
//! | file | what |
//! | --- | --- |
//! | `source.rs` | the file as tract reads it: protobuf, external data, constants, shapes |
//! | `form.rs` | what a value of the graph can be |
//! | `reader.rs`, `operators.rs` | node by node, what each value is |
//! | `layer.rs` | the layers that are found |
//! | `assemble.rs` | which layer must follow which: from layers to an encoder |
//! | `run.rs` | the graph in tract, layer by layer |
//!
//! Nothing is recognised by a name. A graph that is not of this family is refused with the first node that does not fit.

mod assemble;
mod form;
mod layer;
mod operators;
mod reader;
pub mod run;
mod source;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nadir::model::{Architecture, Place};
use nadir_formats::{CARD_KEY, Encoder, ModelCard};
use serde_json::Value;

use assemble::{Assembly, EPSILON_STEP};
use layer::{Kind, Layer};
use reader::{Reader, named};
use source::Source;

/// An encoder read from an ONNX file, and the file itself to be run.
pub struct OnnxEncoder {
    /// The weights and the card.
    pub encoder: Encoder,
    /// Whether the graph takes sensor values; else it takes them normalised.
    pub normalises: bool,
    source: Source,
    /// Of each place, the layer whose value leaves it.
    places: Vec<(Place, Layer)>,
}

/// Reads an ONNX file. The model card comes from the file's metadata (key `nadir`), or else from `card`, a JSON file in which
/// `architecture` and `embedding_space` may be left out: the first is read from the graph, the second named by a hash of the weights.
///
/// # Errors
/// If the file cannot be read, the first node that does not fit with what was expected there, or if there is no card or it does not go with
/// the graph.
pub fn read(path: &Path, card: Option<&Path>) -> Result<OnnxEncoder> {
    read_graph(path, card).with_context(|| path.display().to_string())
}

fn read_graph(path: &Path, card: Option<&Path>) -> Result<OnnxEncoder> {
    let source = Source::read(path)?;
    let card = read_card(&source, card)?;
    let sides = card.as_ref().and_then(|card| card["architecture"]["tile_size"].as_u64()).map(|side| side as usize);
    let [batch, bands, height, width] = source.shape;
    let (height, width) = (height.or(sides), width.or(sides));
    let (Some(bands), Some(height), Some(width)) = (bands, height, width) else {
        bail!(
            "input {:?} leaves its size open; export it with a fixed number of bands, and with fixed rows and columns (the batch may stay free) or a \
             card that holds architecture.tile_size",
            source.input
        );
    };
    ensure!(height == width, "input {:?} is {height} x {width}, the runtime takes square tiles", source.input);
    let facts = source.facts([batch.unwrap_or(1), bands, height, width])?;

    let mut reader = Reader::new(&source, &facts);
    let mut assembly = Assembly::default();
    let misfit =
        source.live_nodes().into_iter().find_map(|node| reader.node(node).err().map(|found| (named(node), found)));
    // All layers were found before the node that did not fit, and a bias may have come to one after it.
    for (number, layer) in reader.layers.iter().enumerate().skip(1) {
        let expected = assembly.expected();
        assembly
            .take(number, layer)
            .map_err(|found| anyhow!("node {} does not fit: found {found}; expected {expected}", layer.node))?;
    }
    if let Some((node, found)) = misfit {
        bail!("node {node} does not fit: {found}; expected {}", assembly.expected());
    }
    let (architecture, count) = assembly.architecture(height).map_err(anyhow::Error::msg)?;
    ensure!(count == bands, "the first convolution takes {count} bands, the input has {bands}");
    let layers = std::mem::take(&mut reader.layers);
    let card = card.with_context(|| {
        format!(
            "has no model card: an ONNX file does not say which bands it takes and how they are normalised. Give a card with --card \
             CARD.json (docs/onnx.md has an example); files by `trainer export --onnx` hold it in their metadata, under {CARD_KEY:?}"
        )
    })?;
    let encoder = with_card(card, architecture, bands, assembly.tensors)?;
    if let Some(number) = assembly.normalise {
        check_normalisation(&encoder.card, &layers[number])?;
    }
    let places = assembly.places.iter().map(|&(place, number)| (place, layers[number].clone())).collect();
    Ok(OnnxEncoder { encoder, normalises: assembly.normalise.is_some(), source, places })
}

/// The card as JSON, from a file if it is given, else from the metadata.
fn read_card(source: &Source, path: Option<&Path>) -> Result<Option<Value>> {
    let embedded = source.proto.metadata_props.iter().find(|entry| entry.key == CARD_KEY);
    let (text, from) = match (path, embedded) {
        (Some(path), _) => {
            let from = path.display().to_string();
            (std::fs::read_to_string(path).with_context(|| from.clone())?, from)
        }
        (None, Some(entry)) => (entry.value.clone(), format!("metadata {CARD_KEY:?}")),
        (None, None) => return Ok(None),
    };
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{from}: is not JSON"))?;
    ensure!(value.is_object(), "{from}: is not a model card, which is a JSON object");
    Ok(Some(value))
}

/// The encoder with its card completed from the graph.
fn with_card(
    mut card: Value,
    found: Architecture,
    bands: usize,
    tensors: std::collections::BTreeMap<String, nadir_formats::Tensor>,
) -> Result<Encoder> {
    let hash = Encoder::space_of(&tensors);
    if card["architecture"].is_null() {
        card["architecture"] = Value::Object(serde_json::Map::new());
    }
    if let (Some(given), Value::Object(found)) = (card["architecture"].as_object_mut(), serde_json::to_value(found)?) {
        for (field, value) in found {
            given.entry(field).or_insert(value);
        }
    }
    if card["embedding_space"].is_null() {
        card["embedding_space"] = hash.into();
    }
    let card: ModelCard = serde_json::from_value(card).context("bad model card")?;
    ensure!(card.bands.len() == bands, "the card has {} bands, the graph takes {bands}", card.bands.len());
    let of_card = &card.architecture;
    for (what, of_card, of_graph) in [
        ("tile_size", of_card.tile_size, found.tile_size),
        ("patch_size", of_card.patch_size.into(), found.patch_size.into()),
    ] {
        ensure!(of_card == of_graph, "architecture.{what} is {of_card} in the card and {of_graph} in the graph");
    }
    for (what, of_card, of_graph) in
        [("ln_eps", of_card.ln_eps, found.ln_eps), ("grn_eps", of_card.grn_eps, found.grn_eps)]
    {
        let close = f64::from((of_card - of_graph).abs()) <= EPSILON_STEP * f64::from(of_graph);
        ensure!(close, "architecture.{what} is {of_card:e} in the card and {of_graph:e} in the graph");
    }
    let shape = |a: &Architecture| (a.stem_padding, a.depths, a.dims);
    ensure!(
        shape(&card.architecture) == shape(&found),
        "the card's architecture has {:?}, the graph {:?}",
        shape(&card.architecture),
        shape(&found)
    );
    Encoder::new(card, tensors).map_err(anyhow::Error::msg)
}

/// Whether the graph normalises as the card says.
fn check_normalisation(card: &ModelCard, layer: &Layer) -> Result<()> {
    let Kind::Normalise { scale, shift, missing } = &layer.kind else { return Ok(()) };
    let of = |values: &[f64], i: usize| values[i % values.len()];
    for (i, band) in card.bands.iter().enumerate() {
        let std = 1.0 / of(scale, i);
        let mean = -of(shift, i) * std;
        let close = |found: f64, expected: f32| {
            (found - f64::from(expected)).abs() <= 1e-5 * f64::from(band.std.abs().max(expected.abs()))
        };
        ensure!(
            close(mean, band.mean) && close(std, band.std),
            "the graph normalises band {} by mean {mean:.6} and std {std:.6}, the card by {} and {}",
            band.name,
            band.mean,
            band.std
        );
        if let Some(Some(values)) = missing {
            let value = Some(of(values, i) as f32).filter(|v| !v.is_nan());
            ensure!(
                value == band.no_data,
                "no data is {value:?} in the graph and {:?} in the card (band {})",
                band.no_data,
                band.name
            );
        }
    }
    Ok(())
}
